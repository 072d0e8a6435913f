"""Workers of an engine in every layout: in processes, on threads, or a single one right here."""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from fabric.core.plan import ParallelConfig
from fabric.engine.executor import ExecutorCosts, Finished, ReadyExecutor
from fabric.engine.gang_models import whole_model
from fabric.engine.gang_transfers import GangTransfers
from fabric.engine.local_executor import LocalExecutor
from fabric.engine.memory_plan import plan_memory
from fabric.engine.settings import EngineSettings
from fabric.engine.shard_host import ProcessShardHost, start_gang
from fabric.engine.worker import Worker, WorkerPlace
from fabric.kv.transfer import WorkerOrders
from fabric.parallel.local import local_groups
from fabric.scheduler.output import SchedulerOutput, StepResult

Inbox = queue.SimpleQueue[SchedulerOutput | WorkerOrders | None]


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

    @property
    def is_whole(self) -> bool:
        """Whether one worker in this process has everything."""
        return self.is_threads and self.pipeline * self.tensor == 1


def start_workers(
    settings: EngineSettings, layout: Layout
) -> tuple[ReadyExecutor, Callable[[], None]]:
    """Start workers, and return their executor with what ends them all."""
    cut = layout.cut(settings)
    if layout.is_whole:
        whole = LocalExecutor(Worker(cut.worker))
        return whole, whole.close
    if layout.is_threads:
        threads = ThreadExecutor(cut)
        return threads, threads.close
    host = ProcessShardHost(cut.parallel, tuple(layout.hosts) if layout.hosts else None)
    executor = start_gang(cut, host)

    def stop() -> None:
        executor.close()
        host.stop()

    return executor, stop


class ThreadExecutor:
    """An executor over workers on threads of this process, joined by LocalGroups."""

    failure = None
    costs = ExecutorCosts()

    def __init__(self, settings: EngineSettings) -> None:
        parallel = settings.parallel
        tensor = [local_groups(parallel.tensor) for _ in range(parallel.pipeline)]
        pipeline = [local_groups(parallel.pipeline) for _ in range(parallel.tensor)]
        self.num_batches = parallel.pipeline
        self.runs_ahead = self.num_batches == 1
        places = [
            WorkerPlace(parallel, tensor[pp][tp], pipeline[tp][pp], settings.layer_split)
            for pp in range(parallel.pipeline)
            for tp in range(parallel.tensor)
        ]
        with ThreadPoolExecutor(len(places)) as pool:
            workers = list(pool.map(lambda p: Worker(settings.worker, place=p), places))
        ranks = zip(*(worker.models for worker in workers), strict=True)
        self.models = tuple(whole_model(parts) for parts in ranks)
        self.memory = plan_memory(settings.worker, [model.size for model in self.models])
        self._transfers = GangTransfers(len(workers))
        self._inboxes: list[Inbox] = []
        self._results: queue.SimpleQueue[StepResult] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        for rank, worker in enumerate(workers):
            worker.allocate(
                self.memory, lambda result, rank=rank: self._transfers.add(rank, [result])
            )
            inbox: Inbox = queue.SimpleQueue()
            thread = threading.Thread(target=self._work, args=(worker, inbox), daemon=True)
            thread.start()
            self._inboxes.append(inbox)
            self._threads.append(thread)

    def submit(self, output: SchedulerOutput) -> None:
        for inbox in self._inboxes:
            inbox.put(output)

    def collect(self) -> StepResult:
        return self._results.get(timeout=30.0)

    def move(self, orders: WorkerOrders) -> None:
        for inbox in self._inboxes:
            inbox.put(orders)

    def take_finished(self, timeout_s: float = 0.0) -> list[Finished]:
        return self._transfers.take(timeout_s)

    def close(self) -> None:
        for inbox in self._inboxes:
            inbox.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self, worker: Worker, inbox: Inbox) -> None:
        while (told := inbox.get()) is not None:
            if isinstance(told, WorkerOrders):
                worker.move(told)
                continue
            result = worker.execute(told)
            if worker.answers:
                self._results.put(result)
        worker.close()
