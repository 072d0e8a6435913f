"""Engines that differ only in how KV memory is reserved, or in when requests may join a batch."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lengths import DATA, Lengths

from fabric.core.clock import Clock, MonotonicClock, VirtualClock
from fabric.core.request import GenerationRequest
from fabric.core.sampling import SamplingParams
from fabric.engine.build import open_local
from fabric.engine.engine import Engine
from fabric.engine.executor import ExecutorCosts, Finished
from fabric.engine.preparation import load_weights
from fabric.engine.settings import ModelSettings, WorkerSettings
from fabric.engine.text_output import TextOutput
from fabric.kv.block_pool import BlockPool
from fabric.kv.contiguous import ContiguousKVManager
from fabric.kv.manager import KVCacheManager
from fabric.kv.transfer import WorkerOrders
from fabric.models.tokenizer import Tokenizer
from fabric.scheduler.baselines import RequestLevel
from fabric.scheduler.lane import ScheduledModel
from fabric.scheduler.output import SampledTokens, SchedulerOutput, StepResult
from fabric.scheduler.policy import FCFS, Policy
from fabric.scheduler.reservations import ReserveMax, ReserveOracle, ReservePow2
from fabric.scheduler.scheduler import Scheduler
from fabric.scheduler.settings import SchedulerConfig

STORIES = DATA / "models/stories260K"
# Layers, keys and values, KV heads, head size, bytes of a number in float32.
STORIES_TOKEN_BYTES = 5 * 2 * 4 * 8 * 4
MODEL = "model"


@dataclass(frozen=True)
class Memory:
    """KV memory of so many slots, and the longest sequence that may be asked for."""

    num_slots: int
    block_size: int
    max_model_len: int


@dataclass(frozen=True)
class Contender:
    """A way to hand out KV memory, with the policy that says for how many tokens."""

    kv: Callable[[Memory], KVCacheManager]
    policy: Callable[[Memory], Policy]


def _contiguous(memory: Memory) -> KVCacheManager:
    pool = BlockPool.fixed(memory.num_slots // memory.block_size)
    return ContiguousKVManager(pool, memory.block_size)


def _paged(memory: Memory) -> KVCacheManager:
    pool = BlockPool.fixed(memory.num_slots // memory.block_size)
    return KVCacheManager(pool, memory.block_size, False)


CONTENDERS = {
    "max": Contender(_contiguous, lambda memory: ReserveMax(memory.max_model_len)),
    "pow2": Contender(_contiguous, lambda memory: ReservePow2(memory.max_model_len)),
    "oracle": Contender(_contiguous, lambda memory: ReserveOracle(memory.max_model_len)),
    "paged": Contender(_paged, lambda memory: FCFS()),
    "request_level": Contender(_paged, lambda memory: RequestLevel()),
}


def make_scheduler(
    contender: Contender, memory: Memory, kv: KVCacheManager, max_num_seqs: int
) -> Scheduler:
    """A scheduler whose iterations are bounded by memory and ``max_num_seqs`` alone."""
    config = SchedulerConfig(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=memory.num_slots + max_num_seqs,
        max_num_waiting=10**6,
        max_model_len=memory.max_model_len,
    )
    model = ScheduledModel(MODEL, kv, frozenset(), memory.max_model_len)
    return Scheduler(config, (model,), contender.policy(memory))


def make_requests(lengths: Lengths, vocab_size: int = 512) -> Iterator[GenerationRequest]:
    """Requests of just these lengths, named by their numbers, that share no prefix."""
    for number, (num_prompt, num_output) in enumerate(lengths):
        first = 3 + number % (vocab_size - 3)
        prompt = tuple(3 + (first + i) % (vocab_size - 3) for i in range(num_prompt))
        sampling = SamplingParams(max_tokens=num_output, temperature=0.0, ignore_eos=True)
        yield GenerationRequest(str(number), MODEL, prompt, sampling)


def answer(output: SchedulerOutput) -> StepResult:
    """What a model that always says token 3 samples in an iteration."""
    return StepResult(
        output.step,
        tuple(
            SampledTokens(item.key, (3,) * item.num_samples)
            for item in output.scheduled
            if item.num_samples
        ),
    )


class StubExecutor:
    """Answers without a model; every iteration takes a second of a virtual clock."""

    num_batches = 1
    runs_ahead = False
    failure = None
    costs = ExecutorCosts()

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        self._results: deque[StepResult] = deque()

    def submit(self, output: SchedulerOutput) -> None:
        self._clock.advance(1.0)
        self._results.append(answer(output))

    def collect(self) -> StepResult:
        return self._results.popleft()

    def move(self, orders: WorkerOrders) -> None:
        assert not orders

    def take_finished(self, timeout_s: float = 0.0) -> list[Finished]:
        return []

    def close(self) -> None:
        pass


def make_engine(
    scheduler: Scheduler, memory: Memory, num_threads: int = 1, clock: Clock | None = None
) -> Engine:
    """An engine of stories260K in float32, in this process; on a virtual clock, without it."""
    texts = TextOutput({MODEL: Tokenizer.load(STORIES)})
    if isinstance(clock, VirtualClock):
        return Engine(scheduler, StubExecutor(clock), texts, clock)
    model = ModelSettings(
        model=MODEL,
        source=str(STORIES),
        dtype="float32",
        max_model_len=memory.max_model_len,
    )
    settings = WorkerSettings(
        models=(model,),
        cache_dir=Path(),
        kv_cache_bytes=memory.num_slots * STORIES_TOKEN_BYTES,
        block_size=memory.block_size,
        num_threads=num_threads,
    )
    executor = open_local(settings)
    load_weights(executor, 0)
    return Engine(scheduler, executor, texts, clock or MonotonicClock())
