import queue
import threading
from dataclasses import replace

import pytest

from fabric.core.clock import MonotonicClock, VirtualClock
from fabric.core.errors import (
    ConfigError,
    InternalError,
    InvalidRequest,
    RequestCancelled,
    Unavailable,
)
from fabric.core.request import GenerationRequest, LoadReport, RequestOutput, Timing, Usage
from fabric.core.sampling import SamplingParams
from fabric.core.status import RequestPhase, RequestStatus
from fabric.engine.engine_loop import EngineLoop
from fabric.scheduler.policies import PolicyConfig


class CountingEngine:
    """Ends every request after two steps; can refuse requests, fail, or hang on to them."""

    def __init__(self) -> None:
        self.ages: dict[str, int] = {}
        self.cancelled: list[str] = []
        self.fails = False
        self.refuses = False
        self.holds = False
        self.failure: str | None = None
        self.is_closed = False
        self.num_steps = 0
        self.load = LoadReport(policy="fcfs")
        self.threads: set[str] = set()

    @property
    def has_work(self) -> bool:
        return bool(self.ages)

    def add(self, request: GenerationRequest) -> None:
        if self.refuses:
            raise InvalidRequest.of("prompt", "is refused")
        self.ages[request.request_id] = 0

    def cancel(self, request_id: str) -> None:
        if self.ages.pop(request_id, None) is not None:
            self.cancelled.append(request_id)

    def step(self) -> list[RequestOutput]:
        if self.fails:
            raise ZeroDivisionError("a bug")
        self.num_steps += not self.holds
        error = RequestCancelled("cancelled")
        outputs = [RequestOutput(name, error=error) for name in self.cancelled]
        self.cancelled.clear()
        for name in list(self.ages):
            self.ages[name] += 1
            if self.ages[name] == 2 and not self.holds:
                del self.ages[name]
                outputs.append(RequestOutput(name, usage=Usage(1, 1), timing=Timing()))
        return outputs

    def close(self) -> None:
        self.is_closed = True

    def report(self) -> LoadReport:
        num_running = 0 if self.load.num_swapped else len(self.ages)
        return replace(self.load, num_running=num_running, num_steps=self.num_steps)

    def notice(self) -> None:
        """Nothing waits in here."""

    def explain(self) -> tuple[RequestStatus, ...]:
        self.threads.add(threading.current_thread().name)
        return tuple(RequestStatus(name, "m", RequestPhase.DECODE) for name in self.ages)

    def set_policy(self, config: PolicyConfig) -> None:
        self.threads.add(threading.current_thread().name)
        if config.name == "edf":
            raise ConfigError("no objectives")
        self.load = replace(self.load, policy=config.name)


@pytest.fixture
def engine() -> CountingEngine:
    return CountingEngine()


@pytest.fixture
def published() -> "queue.Queue[RequestOutput]":
    return queue.Queue()


@pytest.fixture
def loop(engine: CountingEngine, published: "queue.Queue[RequestOutput]"):  # type: ignore[no-untyped-def]
    loop = EngineLoop(engine, (), MonotonicClock())  # type: ignore[arg-type]
    loop.start(lambda outputs: [published.put(output) for output in outputs])  # type: ignore[arg-type,func-returns-value]
    yield loop
    loop.stop()


def request(name: str) -> GenerationRequest:
    return GenerationRequest(name, "m", (1, 2), SamplingParams(max_tokens=2))


def test_submitted_requests_run_to_their_ends(
    loop: EngineLoop, published: "queue.Queue[RequestOutput]"
) -> None:
    for name in ("a", "b", "c"):
        loop.submit(request(name))
    ended = {published.get(timeout=5).request_id for _ in range(3)}
    assert ended == {"a", "b", "c"}


def test_a_refused_request_ends_with_its_error(
    loop: EngineLoop, engine: CountingEngine, published: "queue.Queue[RequestOutput]"
) -> None:
    engine.refuses = True
    loop.submit(request("a"))
    assert isinstance(published.get(timeout=5).error, InvalidRequest)


def test_a_cancel_reaches_the_engine(
    loop: EngineLoop, engine: CountingEngine, published: "queue.Queue[RequestOutput]"
) -> None:
    engine.holds = True
    loop.submit(request("a"))
    loop.cancel("a")
    assert isinstance(published.get(timeout=5).error, RequestCancelled)


def test_an_engine_that_fails_ends_all_requests_and_takes_no_more(
    loop: EngineLoop, engine: CountingEngine, published: "queue.Queue[RequestOutput]"
) -> None:
    engine.fails = True
    loop.submit(request("a"))
    assert isinstance(published.get(timeout=5).error, InternalError)
    assert loop.failure == "ZeroDivisionError: a bug"
    with pytest.raises(Unavailable):
        loop.submit(request("b"))


def test_stopping_ends_unfinished_requests_as_unavailable(
    loop: EngineLoop, engine: CountingEngine, published: "queue.Queue[RequestOutput]"
) -> None:
    engine.holds = True
    loop.submit(request("a"))
    loop.stop()
    assert engine.is_closed
    assert isinstance(published.get(timeout=5).error, Unavailable)


def test_questions_are_answered_on_the_engines_thread_also_while_it_is_idle(
    loop: EngineLoop, engine: CountingEngine
) -> None:
    assert loop.explain().result(timeout=5) == ()
    assert loop.set_policy(PolicyConfig("orca")).result(timeout=5) == ("fcfs", "orca")
    assert engine.threads == {"engine"}


def test_a_request_is_explained_as_soon_as_it_was_submitted(
    loop: EngineLoop, engine: CountingEngine
) -> None:
    engine.holds = True
    loop.submit(request("a"))
    (status,) = loop.explain().result(timeout=5)
    assert status.request_id == "a"


def test_a_policy_that_is_refused_leaves_requests_alone(
    loop: EngineLoop, published: "queue.Queue[RequestOutput]"
) -> None:
    with pytest.raises(ConfigError, match="no objectives"):
        loop.set_policy(PolicyConfig("edf")).result(timeout=5)
    loop.submit(request("a"))
    assert published.get(timeout=5).usage is not None


def test_who_gives_a_question_up_does_not_harm_the_engine(
    loop: EngineLoop, published: "queue.Queue[RequestOutput]"
) -> None:
    for _ in range(100):
        loop.explain().cancel()
    loop.submit(request("a"))
    assert published.get(timeout=5).usage is not None


def test_questions_to_a_stopped_loop_are_refused(loop: EngineLoop) -> None:
    loop.stop()
    with pytest.raises(Unavailable):
        loop.explain().result(timeout=5)


def stalled_s(num_swapped: int, seconds: float, swapped_in_bytes: int = 0) -> float:
    """What is reported of an engine that makes no step for so long."""
    engine, clock = CountingEngine(), VirtualClock()
    engine.holds = True
    engine.load = LoadReport(num_swapped=num_swapped)
    loop = EngineLoop(engine, (), clock, transfer_timeout_s=30.0)  # type: ignore[arg-type]
    loop.start(lambda outputs: None)
    loop.submit(request("a"))
    loop.explain().result(timeout=5)
    clock.advance(seconds)
    engine.load = replace(engine.load, swapped_in_bytes=swapped_in_bytes)
    # Only the second of two answers comes after a whole iteration.
    for _ in range(2):
        loop.explain().result(timeout=5)
    report = loop.report()
    loop.stop()
    return report.stalled_s


def test_no_step_for_long_is_a_stall() -> None:
    assert stalled_s(num_swapped=0, seconds=20.0) == 20.0


def test_waiting_for_copies_is_a_stall_only_after_their_time_is_over() -> None:
    assert stalled_s(num_swapped=1, seconds=20.0) == 0.0
    assert stalled_s(num_swapped=1, seconds=35.0) == 5.0


def test_blocks_that_arrive_are_progress() -> None:
    assert stalled_s(num_swapped=1, seconds=35.0, swapped_in_bytes=4096) == 0.0
