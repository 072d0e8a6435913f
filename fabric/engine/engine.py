"""A device group's engine: scheduler, executor and text, one iteration at a time."""

from collections import deque
from dataclasses import replace

from fabric.core.clock import Clock
from fabric.core.request import (
    GenerationRequest,
    LoadReport,
    ModelLoad,
    RequestOutput,
    SequenceDelta,
)
from fabric.core.status import RequestStatus
from fabric.core.weights import WeightState
from fabric.engine.executor import Executor
from fabric.engine.text_output import TextOutput
from fabric.scheduler.output import SchedulerOutput, SequenceUpdate
from fabric.scheduler.policies import PolicyConfig
from fabric.scheduler.scheduler import Scheduler

_COPY_WAIT_S = 0.005


class Engine:
    """Runs requests to their ends; not thread-safe, and never reads a clock but the one given."""

    def __init__(
        self, scheduler: Scheduler, executor: Executor, texts: TextOutput, clock: Clock
    ) -> None:
        self._scheduler = scheduler
        self._executor = executor
        self._texts = texts
        self._clock = clock
        self._in_flight: deque[SchedulerOutput] = deque()
        # One runs in each stage, and one may wait for the first to be free.
        self._max_in_flight = executor.num_batches
        if scheduler.runs_ahead and executor.runs_ahead:
            self._max_in_flight += 1

    @property
    def has_work(self) -> bool:
        """Whether any request is unfinished."""
        return self._scheduler.has_work

    @property
    def num_in_flight(self) -> int:
        """Iterations whose results have not been taken in; they may outlast their requests."""
        return len(self._in_flight)

    @property
    def failure(self) -> str | None:
        """Why the workers can't go on, if so; the next step raises it."""
        return self._executor.failure

    def explain(self) -> tuple[RequestStatus, ...]:
        """Where each live request is, why it was preempted, and what that has cost."""
        return self._scheduler.explain(self._clock.now())

    def set_policy(self, config: PolicyConfig) -> None:
        """Schedule by another policy from the next iteration on.

        Raises:
            ConfigError: The policy can't be told so.
        """
        self._scheduler.set_policy(config, self._clock.now())

    def set_residence(
        self, model: str, state: WeightState | None, pinned: bool | None
    ) -> ModelLoad:
        """Have a model's weights brought somewhere, and pinned or not; None: as it is.

        Returns:
            How the model stands now: moves take longer.

        Raises:
            ModelNotFound: It is not one of the group's.
            InvalidRequest: The weights could never be there.
        """
        return self._scheduler.set_residence(model, state, pinned, self._clock.now())

    def add(self, request: GenerationRequest) -> None:
        """Take a request in.

        Raises:
            ModelNotFound: It is for a model of another group.
            InvalidRequest: It could never be served.
            Overloaded: The queue is full.
        """
        self._scheduler.add(request, self._clock.now())
        self._texts.add(request)

    def cancel(self, request_id: str) -> None:
        """End a request; its blocks are free at once. Unknown ids are ignored."""
        self._scheduler.cancel(request_id)

    def step(self) -> list[RequestOutput]:
        """Fill the pipeline, finish its oldest iteration, and return what that did.

        When it returns, the workers have the next iteration if they can run ahead: what the caller
        does before the next step, and most of what happens here, takes no time of theirs.

        Raises:
            GroupError: The workers can't go on.
        """
        self._take_finished()
        self._fill_pipeline()
        if not self._in_flight:
            if self._scheduler.num_moves:
                self._take_finished(_COPY_WAIT_S)
            return self._outputs([])
        result = self._executor.collect()
        if result is None:
            return self._outputs([])
        output = self._in_flight.popleft()
        updates = self._scheduler.update_from_output(output, result, self._clock.now())
        return self._outputs(updates)

    def notice(self) -> None:
        """Let a step that waits return if the pipeline has room for more; called on any thread.

        A request that comes while one iteration is in flight would else wait for its end, with
        nothing behind it.
        """
        if 0 < len(self._in_flight) < self._max_in_flight:
            self._executor.interrupt()

    def close(self) -> None:
        """End the workers."""
        self._executor.close()

    def report(self) -> LoadReport:
        """The engine's load, and what driving its workers has cost."""
        costs = self._executor.costs
        return replace(
            self._scheduler.report(),
            control_bytes=costs.control_bytes,
            control_s=costs.control_s,
            execute_s=costs.execute_s,
            num_collectives=costs.num_collectives,
            collective_bytes=costs.collective_bytes,
            collective_s=costs.collective_s,
        )

    def _fill_pipeline(self) -> None:
        while len(self._in_flight) < self._max_in_flight:
            output = self._scheduler.schedule(self._clock.now())
            if orders := self._scheduler.take_orders():
                self._executor.move(orders)
                self._finish_copies_first()
            if not output.scheduled:
                return
            self._executor.submit(output)
            self._in_flight.append(output)

    def _take_finished(self, timeout_s: float = 0.0) -> None:
        if finished := self._executor.take_finished(timeout_s):
            self._scheduler.finish_moves(finished, self._clock.now())

    def _finish_copies_first(self) -> None:
        """Wait for all copies if they are to be on the critical path, as a baseline."""
        start_s = self._clock.now()
        while self._scheduler.waits_for_copies(self._clock.now()):
            self._take_finished(_COPY_WAIT_S)
        self._scheduler.note_stall(self._clock.now() - start_s)

    def _outputs(self, updates: list[SequenceUpdate]) -> list[RequestOutput]:
        deltas: dict[str, list[SequenceDelta]] = {}
        for update in updates:
            text = self._texts.push(update)
            if text.stop is not None:
                self._scheduler.stop(update.key, text.stop, self._clock.now())
            deltas.setdefault(update.request_id, []).append(text.delta)
        outputs = []
        for end in self._scheduler.take_ended():
            self._texts.remove(end.request_id)
            ended = tuple(deltas.pop(end.request_id, ()))
            outputs.append(RequestOutput(end.request_id, ended, end.usage, end.timing, end.error))
        outputs.extend(RequestOutput(name, tuple(items)) for name, items in deltas.items())
        return outputs
