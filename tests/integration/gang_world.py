"""What tests of gangs share: engines over shards in processes or threads, and what they answer."""

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from fabric.core.clock import Clock
from fabric.core.plan import ParallelConfig
from fabric.core.request import GenerationRequest
from fabric.core.sampling import SamplingParams
from fabric.engine.build import BuiltEngine, build_engine
from fabric.engine.executor import ExecutorCosts, LoadedExecutor
from fabric.engine.gang_transfers import GangTransfers
from fabric.engine.offline import Generated
from fabric.engine.settings import EngineSettings, WorkerSettings
from fabric.engine.shard_host import ProcessShardHost, start_gang
from fabric.engine.worker import Worker, WorkerPlace
from fabric.kv.transfer import BlockOrders, ParkingSpace, TransferResult
from fabric.models.sources import default_cache_dir
from fabric.parallel.local import local_groups
from fabric.scheduler.output import SchedulerOutput, StepResult
from fabric.scheduler.settings import SchedulerConfig

PROMPTS = (
    "Once upon a time",
    "One day, a cat",
    "The big red ball",
    "She was sad because",
    "Tom and Sue went to the park. They saw a dog. The dog was very",
    "Mom said",
)
NUM_TOKENS = 64


def stories_settings(path: Path) -> EngineSettings:
    worker = WorkerSettings(
        model="stories",
        source=str(path),
        cache_dir=default_cache_dir(),
        dtype="float32",
        kv_cache_bytes=4 * 2**20,
        num_threads=1,
    )
    scheduler = SchedulerConfig(max_num_seqs=16, max_num_batched_tokens=16)
    return EngineSettings(worker=worker, scheduler=scheduler)


def greedy(num_tokens: int = NUM_TOKENS) -> SamplingParams:
    return SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)


def requests(
    prompts: Sequence[Sequence[int]], sampling: SamplingParams | None = None
) -> list[GenerationRequest]:
    return [
        GenerationRequest(f"r{i}", "model", tuple(prompt), sampling or greedy())
        for i, prompt in enumerate(prompts)
    ]


def tokens(results: dict[str, Generated]) -> list[list[list[int]]]:
    """The tokens of each request's sequences."""
    return [
        [results[f"r{i}"].sequences[j].token_ids for j in sorted(results[f"r{i}"].sequences)]
        for i in range(len(results))
    ]


@dataclass(frozen=True)
class Layout:
    """How a gang is cut, and which host each rank is told that it is on."""

    pipeline: int = 1
    tensor: int = 1
    hosts: str = ""
    layer_split: tuple[int, ...] | None = None
    is_threads: bool = False

    def __str__(self) -> str:
        words = [f"{self.pipeline}x{self.tensor}", self.hosts, *map(str, self.layer_split or ())]
        return "-".join(filter(None, [*words, "threads" if self.is_threads else ""]))

    def cut(self, settings: EngineSettings) -> EngineSettings:
        parallel = ParallelConfig(self.pipeline, self.tensor)
        return replace(settings, parallel=parallel, layer_split=self.layer_split)


@dataclass(frozen=True)
class Gang:
    """Workers that are running; several engines may drive them, one after the other."""

    settings: EngineSettings
    executor: LoadedExecutor
    stop: Callable[[], None]

    def engine(
        self, clock: Clock | None = None, scheduler: SchedulerConfig | None = None
    ) -> BuiltEngine:
        settings = replace(self.settings, scheduler=scheduler or self.settings.scheduler)
        return build_engine(settings, clock=clock, gang=self.executor)


def start(settings: EngineSettings, layout: Layout) -> Gang:
    """Start a gang in processes of this host, or on threads of this one."""
    cut = layout.cut(settings)
    if layout.is_threads:
        threads = ThreadExecutor(cut)
        return Gang(cut, threads, threads.close)
    host = ProcessShardHost(cut.parallel, tuple(layout.hosts) if layout.hosts else None)
    executor = start_gang(cut, host)

    def stop() -> None:
        executor.close()
        host.stop()

    return Gang(cut, executor, stop)


class ThreadExecutor:
    """An executor over workers on threads of this process, joined by LocalGroups."""

    failure = None
    costs = ExecutorCosts()

    def __init__(self, settings: EngineSettings) -> None:
        parallel = settings.parallel
        tensor = [local_groups(parallel.tensor) for _ in range(parallel.pipeline)]
        pipeline = [local_groups(parallel.pipeline) for _ in range(parallel.tensor)]
        self.num_batches = parallel.pipeline
        places = [
            WorkerPlace(parallel, tensor[pp][tp], pipeline[tp][pp], settings.layer_split)
            for pp in range(parallel.pipeline)
            for tp in range(parallel.tensor)
        ]
        with ThreadPoolExecutor(len(places)) as pool:
            workers = list(pool.map(lambda p: Worker(settings.worker, place=p), places))
        self.card, self.defaults = workers[0].card, workers[0].defaults
        self.num_blocks = min(worker.max_num_blocks for worker in workers)
        self.space = ParkingSpace(
            min(worker.space.num_host_slots for worker in workers),
            min(worker.space.num_disk_slots for worker in workers),
            sum(worker.space.block_bytes for worker in workers),
        )
        self._transfers = GangTransfers(len(workers))
        self._inboxes: list[queue.SimpleQueue[SchedulerOutput | BlockOrders | None]] = []
        self._results: queue.SimpleQueue[StepResult] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        for rank, worker in enumerate(workers):
            worker.allocate(
                self.num_blocks, lambda result, rank=rank: self._transfers.add(rank, [result])
            )
            inbox: queue.SimpleQueue[SchedulerOutput | BlockOrders | None] = queue.SimpleQueue()
            thread = threading.Thread(target=self._work, args=(worker, inbox), daemon=True)
            thread.start()
            self._inboxes.append(inbox)
            self._threads.append(thread)

    def submit(self, output: SchedulerOutput) -> None:
        for inbox in self._inboxes:
            inbox.put(output)

    def collect(self) -> StepResult:
        return self._results.get(timeout=30.0)

    def move(self, orders: BlockOrders) -> None:
        for inbox in self._inboxes:
            inbox.put(orders)

    def take_moved(self, timeout_s: float = 0.0) -> list[TransferResult]:
        return self._transfers.take(timeout_s)

    def close(self) -> None:
        for inbox in self._inboxes:
            inbox.put(None)
        for thread in self._threads:
            thread.join()

    def _work(
        self,
        worker: Worker,
        inbox: "queue.SimpleQueue[SchedulerOutput | BlockOrders | None]",
    ) -> None:
        while (told := inbox.get()) is not None:
            if isinstance(told, BlockOrders):
                worker.move(told)
                continue
            result = worker.execute(told)
            if worker.answers:
                self._results.put(result)
        worker.close()
