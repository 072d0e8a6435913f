"""An engine with room for two iterations: what comes while one is in flight."""

import queue

import pytest

from fabric.core.clock import MonotonicClock
from fabric.core.request import GenerationRequest, RequestOutput, SequenceDelta
from fabric.core.sampling import SamplingParams
from fabric.engine.engine import Engine
from fabric.engine.engine_loop import EngineLoop
from fabric.engine.executor import ExecutorCosts
from fabric.engine.text_output import TextDelta
from fabric.kv.block_pool import BlockPool
from fabric.kv.manager import KVCacheManager
from fabric.scheduler.lane import ScheduledModel
from fabric.scheduler.output import SampledTokens, SchedulerOutput, SequenceUpdate, StepResult
from fabric.scheduler.scheduler import Scheduler
from fabric.scheduler.settings import SchedulerConfig

TIMEOUT_S = 10.0


class TwoInFlight:
    """Iterations end when they are let go; they go through two stages, or wait for the only one."""

    failure = None
    costs = ExecutorCosts()

    def __init__(self, num_batches: int) -> None:
        self.num_batches = num_batches
        self.runs_ahead = num_batches == 1
        self.begun: queue.SimpleQueue[SchedulerOutput] = queue.SimpleQueue()
        self._ended: queue.SimpleQueue[StepResult | None] = queue.SimpleQueue()

    def submit(self, output: SchedulerOutput) -> None:
        self.begun.put(output)

    def end(self, output: SchedulerOutput) -> None:
        sampled = (SampledTokens(item.key, (7,)) for item in output.scheduled if item.num_samples)
        self._ended.put(StepResult(output.step, tuple(sampled)))

    def collect(self) -> StepResult | None:
        return self._ended.get(timeout=TIMEOUT_S)

    def interrupt(self) -> None:
        self._ended.put(None)

    def move(self, orders: object) -> None:
        raise AssertionError("nothing moves here")

    def take_finished(self, timeout_s: float = 0.0) -> list[object]:
        return []

    def close(self) -> None:
        """Nothing is open."""


class NoTexts:
    """Leaves tokens as they are."""

    def add(self, request: GenerationRequest) -> None:
        """Nothing to prepare."""

    def remove(self, request_id: str) -> None:
        """Nothing to forget."""

    def push(self, update: SequenceUpdate) -> TextDelta:
        return TextDelta(SequenceDelta(0, update.first_token, update.token_ids))


@pytest.mark.parametrize("num_batches", [1, 2])
def test_a_request_is_begun_while_another_is_in_flight(num_batches: int) -> None:
    stages = TwoInFlight(num_batches)
    model = ScheduledModel("m", KVCacheManager(BlockPool.fixed(64), 16), frozenset(), 2048)
    scheduler = Scheduler(SchedulerConfig(num_batches=num_batches, async_scheduling=True), (model,))
    clock = MonotonicClock()
    loop = EngineLoop(Engine(scheduler, stages, NoTexts(), clock), (), clock)  # type: ignore[arg-type]
    outputs: queue.SimpleQueue[RequestOutput] = queue.SimpleQueue()
    loop.start(lambda items: [outputs.put(item) for item in items] and None)
    sampling = SamplingParams(max_tokens=1)
    loop.submit(GenerationRequest("first", "m", (1, 2, 3), sampling))
    first = stages.begun.get(timeout=TIMEOUT_S)
    loop.submit(GenerationRequest("second", "m", (4, 5, 6), sampling))
    second = stages.begun.get(timeout=TIMEOUT_S)
    stages.end(first)
    stages.end(second)
    ended = [outputs.get(timeout=TIMEOUT_S).request_id for _ in range(2)]
    loop.stop()
    assert ended == ["first", "second"]
