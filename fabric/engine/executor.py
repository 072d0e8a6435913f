"""Who carries out the scheduler's iterations."""

from typing import Protocol

from fabric.engine.worker import Worker
from fabric.scheduler.output import SchedulerOutput, StepResult


class Executor(Protocol):
    """Drives a device group's workers."""

    def execute(self, output: SchedulerOutput) -> StepResult:
        """Run one iteration on every worker, and return what the last stage sampled."""
        ...


class LocalExecutor:
    """One worker, in this process."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def execute(self, output: SchedulerOutput) -> StepResult:
        """Run one iteration."""
        return self._worker.execute(output)
