"""Runs an engine on a thread of its own, fed from other threads."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, TypeVar

from fabric.core.clock import Clock
from fabric.core.errors import GroupError, InternalError, RequestError, Unavailable
from fabric.core.request import (
    GenerationRequest,
    LoadReport,
    ModelLoad,
    RequestOutput,
    ServedModel,
)
from fabric.core.status import RequestStatus
from fabric.core.weights import WeightState
from fabric.engine.engine import Engine
from fabric.engine.question import Question
from fabric.scheduler.policies import PolicyConfig

logger = logging.getLogger(__name__)

# How often an engine without work looks whether weights should leave, and how often one with
# work takes its load down.
_IDLE_PERIOD_S = 1.0
_REPORT_PERIOD_S = 0.02

T = TypeVar("T")
Publish = Callable[[list[RequestOutput]], None]


class EngineLoop:
    """Steps an engine while it has work, and sleeps while it has none.

    Every submitted request gets exactly one last RequestOutput, also when the engine fails or
    stops. The scheduler gives a copy of KV blocks up after ``transfer_timeout_s``: only then is it
    a stall that nothing runs because of one.
    """

    def __init__(
        self,
        engine: Engine,
        served: tuple[ServedModel, ...],
        clock: Clock,
        transfer_timeout_s: float = 0.0,
    ) -> None:
        self._engine = engine
        self._served = served
        self._clock = clock
        self._transfer_timeout_s = transfer_timeout_s
        self._publish: Publish = _discard
        self._wake = threading.Condition()
        self._submitted: list[GenerationRequest] = []
        self._cancelled: list[str] = []
        self._questions: list[Question[Any]] = []
        self._live: set[str] = set()
        self._is_stopping = False
        self._failure: str | None = None
        self._progress_at_s = clock.now()
        self._reported_s = self._progress_at_s
        self._report = engine.report()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def served(self) -> tuple[ServedModel, ...]:
        """The models that the engine serves."""
        return self._served

    @property
    def failure(self) -> str | None:
        """What ended the loop, or will end its next step."""
        return self._failure or self._engine.failure

    def start(self, publish: Publish) -> None:
        """Start stepping; ``publish`` is called once a step, on the loop's thread."""
        self._publish = publish
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """End the loop; unfinished requests end with Unavailable."""
        with self._wake:
            self._is_stopping = True
            self._wake.notify()
        self._thread.join(timeout_s)

    def submit(self, request: GenerationRequest) -> None:
        """Hand a request to the engine; a refusal is published.

        Raises:
            Unavailable: The engine has failed or stops.
        """
        with self._wake:
            if self._is_stopping or self.failure:
                raise Unavailable("the device group is stopping", retry_after_s=1.0)
            if not self._submitted and not self._live:
                self._progress_at_s = self._clock.now()
            self._submitted.append(request)
            self._live.add(request.request_id)
            self._wake.notify()
        self._engine.notice()

    def cancel(self, request_id: str) -> None:
        """End a request before the next step; unknown ids are ignored."""
        with self._wake:
            self._cancelled.append(request_id)
            self._wake.notify()

    def report(self) -> LoadReport:
        """The load after the last step, and for how long there has been no progress."""
        with self._wake:
            report, stalled_s = self._report, 0.0
            if self._live:
                waits_for_copies = report.num_swapped and not report.num_running
                patience_s = self._transfer_timeout_s if waits_for_copies else 0.0
                stalled_s = max(0.0, self._clock.now() - self._progress_at_s - patience_s)
            return replace(report, stalled_s=stalled_s)

    def explain(self) -> "Future[tuple[RequestStatus, ...]]":
        """Where the unfinished requests are, between two iterations.

        The future fails with Unavailable if the engine has failed or stops.
        """
        return self._ask(Question(lambda engine: engine.explain()))

    def set_policy(self, config: PolicyConfig) -> "Future[tuple[str, str]]":
        """Schedule by another policy from the next iteration on; the names before and after."""
        return self._ask(Question(lambda engine: _change_policy(engine, config)))

    def set_residence(
        self, model: str, state: WeightState | None, pinned: bool | None
    ) -> "Future[ModelLoad]":
        """Have a model's weights brought somewhere, and pinned or not; None: as it is."""
        return self._ask(Question(lambda engine: engine.set_residence(model, state, pinned)))

    def _ask(self, question: Question[T]) -> "Future[T]":
        with self._wake:
            if self._is_stopping or self.failure:
                question.refuse(Unavailable("the device group is stopping", retry_after_s=1.0))
            else:
                self._questions.append(question)
                self._wake.notify()
        return question.answer

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self._iterate()
        except GroupError as error:
            logger.warning("the device group lost its workers: %s", error)
            self._failure = f"{type(error).__name__}: {error}"
            self._end_all(Unavailable(f"the device group failed: {error}", retry_after_s=1.0))
        except Exception as error:
            logger.exception("the engine failed")
            self._failure = f"{type(error).__name__}: {error}"
            self._end_all(InternalError("the engine failed; see the device group's log"))
        else:
            self._end_all(Unavailable("the device group stopped", retry_after_s=1.0))
        finally:
            self._engine.close()

    def _wait_for_work(self) -> bool:
        with self._wake:
            while not (
                self._is_stopping or self._submitted or self._questions or self._engine.has_work
            ):
                self._cancelled.clear()
                if not self._wake.wait(_IDLE_PERIOD_S):
                    # Weights that nobody needs leave even if nothing else happens.
                    break
            return not self._is_stopping

    def _iterate(self) -> None:
        with self._wake:
            submitted, self._submitted = self._submitted, []
            cancelled, self._cancelled = self._cancelled, []
            questions, self._questions = self._questions, []
        outputs = [output for request in submitted if (output := self._add(request))]
        for request_id in cancelled:
            self._engine.cancel(request_id)
        for question in questions:
            question.put_to(self._engine)
        outputs += self._engine.step()
        self._note_load()
        with self._wake:
            self._live.difference_update(o.request_id for o in outputs if o.is_last)
        if outputs:
            self._publish(outputs)

    def _note_load(self) -> None:
        """Take the engine's load down, but not after each of many short iterations."""
        now = self._clock.now()
        if now - self._reported_s < _REPORT_PERIOD_S and self._engine.has_work:
            return
        report = self._engine.report()
        with self._wake:
            self._reported_s = now
            if _progress(report) != _progress(self._report) or _moves_weights(report):
                self._progress_at_s = now
            self._report = report

    def _add(self, request: GenerationRequest) -> RequestOutput | None:
        try:
            self._engine.add(request)
        except RequestError as error:
            return RequestOutput(request.request_id, error=error)
        return None

    def _end_all(self, error: RequestError) -> None:
        with self._wake:
            live, self._live = self._live, set()
            questions, self._questions = self._questions, []
            self._is_stopping = True
        for question in questions:
            question.refuse(error)
        if live:
            self._publish([RequestOutput(name, error=error) for name in sorted(live)])


def _change_policy(engine: Engine, config: PolicyConfig) -> tuple[str, str]:
    before = engine.report().policy
    engine.set_policy(config)
    return before, engine.report().policy


def _progress(report: LoadReport) -> tuple[int, ...]:
    """What changes as long as an engine with work gets on: iterations, and KV blocks that move."""
    return (
        report.num_steps,
        report.swapped_out_bytes,
        report.swapped_in_bytes,
        report.num_failed_transfers,
    )


def _moves_weights(report: LoadReport) -> bool:
    """Whether weights are on their way, which takes as long as it takes."""
    moving = (WeightState.FETCHING, WeightState.LOADING)
    return any(model.state in moving for model in report.models)


def _discard(outputs: list[RequestOutput]) -> None:
    """Stands in for ``publish`` until the loop is started."""
