import queue

import pytest

from fabric.core.clock import MonotonicClock
from fabric.core.errors import InternalError, InvalidRequest, RequestCancelled, Unavailable
from fabric.core.request import GenerationRequest, LoadReport, RequestOutput, Timing, Usage
from fabric.core.sampling import SamplingParams
from fabric.engine.engine_loop import EngineLoop


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
        self.num_steps += 1
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
        return LoadReport(num_running=len(self.ages), num_steps=self.num_steps)


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
