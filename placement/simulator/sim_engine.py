"""A device group's engine on a virtual clock: the real scheduler, and made-up iterations."""

from collections import deque
from collections.abc import Callable, Sequence
from math import ceil, inf
from typing import Protocol

from fabric.core.errors import RequestError
from fabric.core.request import GenerationRequest, LoadReport
from fabric.scheduler.output import (
    RequestEnd,
    SampledTokens,
    SchedulerOutput,
    SequenceUpdate,
    StepResult,
)
from placement.cost.model import ModelCost
from placement.simulator.iteration_time import iteration_s
from placement.simulator.sim_group import BuiltGroup
from placement.simulator.sim_moves import FIRST_SHARE
from placement.simulator.simulated import GroupFigures

# How an engine waits: for copies while nothing is in flight, and between looks at weights that
# nobody uses (fabric.engine.engine, engine_loop).
_COPY_WAIT_S = 0.005
_IDLE_PERIOD_S = 1.0
# An engine that has work which can't run looks again at once; here time has to pass.
_SPIN_S = 0.001
_TOKEN = (0,)

Observe = Callable[[SchedulerOutput, float], None]


class Listener(Protocol):
    """Hears what a group's engine publishes; times are those of the virtual clock."""

    def note_refused(self, request_id: str, error: RequestError) -> None:
        """The engine refused a request."""
        ...

    def note_tokens(self, updates: Sequence[SequenceUpdate], now: float) -> None:
        """An iteration gave requests tokens."""
        ...

    def note_end(self, end: RequestEnd, now: float) -> None:
        """A request has ended."""
        ...


class SimulatedEngine:
    """Does at ``next_at_s`` what an engine's thread would do then; infinite: it waits for work.

    It takes the steps of :class:`fabric.engine.engine.Engine` in the order of its loop: what has
    come is added between two steps, the pipeline is filled, and the oldest iteration awaited. An
    iteration goes through the stages one after the other, each of which has one at a time; one
    more may wait for its stage, if its scheduler runs ahead.
    ``hears_tokens``: the listener wants to hear of each iteration's tokens.
    """

    def __init__(
        self,
        built: BuiltGroup,
        costs: Sequence[ModelCost],
        listener: Listener,
        hears_tokens: bool,
        observe: Observe | None = None,
    ) -> None:
        self.next_at_s = inf
        self._built = built
        self._scheduler = built.scheduler
        self._moves = built.moves
        self._slabs = built.slabs
        self._costs = costs
        self._listener = listener
        self._hears_tokens = hears_tokens
        self._observe = observe
        self._num_stages = len(costs[0].stage_shares)
        self._stages_free_s = [0.0] * self._num_stages
        self._max_in_flight = self._num_stages + built.scheduler.runs_ahead
        self._driver_free_s = 0.0
        self._flights: deque[tuple[float, SchedulerOutput]] = deque()
        self._inbox: list[GenerationRequest] = []
        self._samples: dict[int, SampledTokens] = {}
        self._is_idle = True
        self._busy_s = 0.0
        self._least_free_slabs = built.slabs.num_free
        self._num_first_loads = self._num_loads()
        self._wait_for_work(0.0)

    def submit(self, request: GenerationRequest, now: float) -> None:
        """Hand a request over, which is added before the next step."""
        self._inbox.append(request)
        if self._is_idle:
            self._is_idle = False
            self.next_at_s = max(now, self._driver_free_s)
        elif 0 < len(self._flights) < self._max_in_flight:
            # The pipeline has room: the engine doesn't wait for what is in it.
            self.next_at_s = min(self.next_at_s, max(now, self._driver_free_s))

    def advance(self) -> None:
        """Do what is due at ``next_at_s``."""
        now, flights, scheduler = self.next_at_s, self._flights, self._scheduler
        if flights and flights[0][0] <= now:
            self._take_in(flights.popleft()[1], now)
        if not self._inbox and not scheduler.has_work and not self._is_idle:
            self._wait_for_work(now)
            return
        self._is_idle = False
        for request in self._inbox:
            self._add(request, now)
        self._inbox.clear()
        if self._moves.next_s <= now:
            scheduler.finish_moves(self._moves.take_finished(now), now)
        self._fill_pipeline(now)
        self._await()

    def report(self) -> LoadReport:
        """The group's load."""
        return self._scheduler.report()

    def figures(self, name: str) -> GroupFigures:
        """What it has done so far."""
        num_slabs, load = self._slabs.num_slabs, self._scheduler.report()
        return GroupFigures(
            name,
            load.num_steps,
            load.num_tokens,
            self._busy_s,
            load.num_preemptions,
            self._num_loads() - self._num_first_loads,
            num_slabs - self._least_free_slabs,
            num_slabs,
        )

    def _add(self, request: GenerationRequest, now: float) -> None:
        try:
            self._scheduler.add(request, now)
        except RequestError as error:
            self._listener.note_refused(request.request_id, error)

    def _take_in(self, output: SchedulerOutput, now: float) -> None:
        """Have an iteration's tokens taken in, which are all alike, and tell who has ended."""
        samples, sampled = self._samples, []
        for item in output.scheduled:
            if item.num_samples:
                key = item.key
                sample = samples.get(key)
                if sample is None:
                    sample = samples[key] = SampledTokens(key, _TOKEN)
                sampled.append(sample)
        result = StepResult(output.step, tuple(sampled))
        updates = self._scheduler.update_from_output(output, result, now)
        if self._hears_tokens and updates:
            self._listener.note_tokens(updates, now)
        for update in updates:
            if update.finish_reason is not None:
                del samples[update.key]
        for end in self._scheduler.take_ended():
            self._listener.note_end(end, now)

    def _fill_pipeline(self, now: float) -> None:
        scheduler, flights, clock_s = self._scheduler, self._flights, now
        while len(flights) < self._max_in_flight:
            output = scheduler.schedule(clock_s)
            if orders := scheduler.take_orders():
                self._moves.begin(orders, clock_s)
                clock_s = self._finish_copies_first(clock_s)
            if not output.scheduled:
                break
            clock_s = self._launch(output, clock_s)
        self._driver_free_s = clock_s
        if self._slabs.num_free < self._least_free_slabs:
            self._least_free_slabs = self._slabs.num_free
        for end in scheduler.take_ended():
            self._listener.note_end(end, clock_s)

    def _launch(self, output: SchedulerOutput, now: float) -> float:
        """Send an iteration through the stages; when the engine is free again."""
        cost = self._costs[output.model]
        seconds = iteration_s(cost.profile, output)
        if self._observe is not None:
            self._observe(output, now)
        begun_s = done_s = now + cost.overhead_s
        free_s = self._stages_free_s
        for stage, share in enumerate(cost.stage_shares):
            done_s = max(done_s, free_s[stage]) + share * seconds
            free_s[stage] = done_s
        # Layers that have not arrived are waited for.
        done_s = max(done_s, self._moves.loaded_s(output.model) + FIRST_SHARE * seconds)
        free_s[-1] = done_s
        self._flights.append((done_s, output))
        self._busy_s += seconds / self._num_stages
        return begun_s

    def _finish_copies_first(self, now: float) -> float:
        """Wait for all copies if they are to be on the critical path; when they are over."""
        clock_s = now
        while self._scheduler.waits_for_copies(clock_s):
            clock_s = min(clock_s + _COPY_WAIT_S, max(clock_s, self._moves.next_s))
            self._scheduler.finish_moves(self._moves.take_finished(clock_s), clock_s)
        self._scheduler.note_stall(clock_s - now)
        return clock_s

    def _await(self) -> None:
        """Wait for the oldest iteration, else for moves."""
        now = self._driver_free_s
        if self._flights:
            self.next_at_s = max(self._flights[0][0], now)
        elif self._scheduler.num_moves:
            self.next_at_s = min(now + _COPY_WAIT_S, max(now, self._moves.next_s))
        elif self._inbox or self._scheduler.has_work:
            self.next_at_s = now + _SPIN_S
        else:
            self._wait_for_work(now)

    def _wait_for_work(self, now: float) -> None:
        """Sleep, but for a look every second, as soon as weights that nobody needs may leave."""
        self._is_idle = True
        due_s = self._built.residency.due_at_s
        if due_s == inf:
            self.next_at_s = inf
            return
        num_periods = max(1, ceil((due_s - now) / _IDLE_PERIOD_S)) if due_s > now else 1
        self.next_at_s = now + num_periods * _IDLE_PERIOD_S

    def _num_loads(self) -> int:
        return sum(self._built.residency.load(i).num_loads for i in range(len(self._costs)))
