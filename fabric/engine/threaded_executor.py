"""An executor without other processes, whose worker computes while the engine goes on."""

import queue
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

from fabric.engine.executor import Finished
from fabric.engine.local_executor import LocalExecutor
from fabric.engine.worker import Worker
from fabric.kv.transfer import WorkerOrders
from fabric.scheduler.output import SchedulerOutput, StepResult


class ThreadedExecutor(LocalExecutor):
    """One worker in this process, on a thread of its own.

    It carries out iterations, and moves between them, in the order in which they come.
    """

    runs_ahead = True

    def __init__(self, worker: Worker) -> None:
        """Plan the worker's memory, and let it take that.

        Raises:
            ConfigError: A model doesn't fit.
        """
        super().__init__(worker)
        self._thread = ThreadPoolExecutor(1, "worker")
        self._done: queue.SimpleQueue[Future[StepResult] | None] = queue.SimpleQueue()
        self._moves: deque[Future[None]] = deque()

    def submit(self, output: SchedulerOutput) -> None:
        """Let the worker run an iteration after those in flight."""
        self._thread.submit(self._worker.execute, output).add_done_callback(self._done.put)

    def collect(self) -> StepResult | None:
        """Wait for the oldest iteration in flight."""
        done = self._done.get()
        return None if done is None else done.result()

    def interrupt(self) -> None:
        """See Executor."""
        self._done.put(None)

    def move(self, orders: WorkerOrders) -> None:
        """Let the worker begin after the iterations in flight."""
        self._moves.append(self._thread.submit(self._worker.move, orders))

    def take_finished(self, timeout_s: float = 0.0) -> list[Finished]:
        """What the worker has finished."""
        while self._moves and self._moves[0].done():
            self._moves.popleft().result()
        return super().take_finished(timeout_s)

    def close(self) -> None:
        """End the worker's moves, after what is in flight."""
        self._thread.shutdown(cancel_futures=True)
        super().close()
