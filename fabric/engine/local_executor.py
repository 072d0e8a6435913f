"""An executor without other processes."""

from collections import deque

from fabric.engine.executor import ExecutorCosts, Finished
from fabric.engine.memory_plan import plan_memory
from fabric.engine.worker import Worker
from fabric.kv.transfer import WorkerOrders
from fabric.scheduler.output import SchedulerOutput, StepResult


class LocalExecutor:
    """One worker in this process, which computes while the engine waits."""

    num_batches = 1
    runs_ahead = False
    failure = None
    costs = ExecutorCosts()

    def __init__(self, worker: Worker) -> None:
        """Plan the worker's memory, and let it take that.

        Raises:
            ConfigError: A model doesn't fit.
        """
        self.models = worker.models
        self.memory = plan_memory(worker.settings, [model.size for model in worker.models])
        self._worker = worker
        self._results: deque[StepResult] = deque()
        worker.allocate(self.memory)

    def submit(self, output: SchedulerOutput) -> None:
        """Run an iteration."""
        self._results.append(self._worker.execute(output))

    def collect(self) -> StepResult | None:
        """What the iteration sampled."""
        return self._results.popleft()

    def interrupt(self) -> None:
        """Nothing waits here."""

    def move(self, orders: WorkerOrders) -> None:
        """Let the worker begin."""
        self._worker.move(orders)

    def take_finished(self, timeout_s: float = 0.0) -> list[Finished]:
        """What the worker has finished."""
        return self._worker.take_finished(timeout_s)

    def close(self) -> None:
        """End the worker's moves."""
        self._worker.close()
