"""A worker on a thread of its own does what it is told, in order, and says what went wrong."""

import gc
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from fabric.core.request import ModelCard
from fabric.core.sampling import GenerationDefaults
from fabric.engine.executor import HostedModel
from fabric.engine.settings import ModelSettings, WorkerSettings
from fabric.engine.threaded_executor import ThreadedExecutor
from fabric.kv.transfer import ParkingSpace, WorkerOrders
from fabric.scheduler.output import SchedulerOutput, StepResult

TIMEOUT_S = 10.0


class ScriptedWorker:
    """Notes what it does; iterations go on when they are let."""

    settings = WorkerSettings(models=(ModelSettings(model="m", source=""),), cache_dir=Path())
    models = (
        HostedModel(
            ModelCard("m", "", 8, 8, "", ""), GenerationDefaults(), 1, 1, 2**16, ParkingSpace()
        ),
    )

    def __init__(self) -> None:
        self.done: list[object] = []
        self.may_run = threading.Semaphore(0)

    def allocate(self, memory: object) -> None:
        """There is nothing to reserve."""

    def execute(self, output: SchedulerOutput) -> StepResult:
        assert self.may_run.acquire(timeout=TIMEOUT_S)
        if output.step < 0:
            raise ZeroDivisionError("a bug")
        self.done.append(output.step)
        return StepResult(output.step, ())

    def move(self, orders: WorkerOrders) -> None:
        if orders.punched == (-1,):
            raise ZeroDivisionError("a bug in a move")
        self.done.append(orders)

    def take_finished(self, timeout_s: float) -> list[object]:
        return []

    def close(self) -> None:
        self.done.append("closed")


@pytest.fixture
def worker() -> ScriptedWorker:
    return ScriptedWorker()


@pytest.fixture
def executor(worker: ScriptedWorker) -> Iterator[ThreadedExecutor]:
    executor = ThreadedExecutor(worker)  # type: ignore[arg-type]
    yield executor
    worker.may_run.release(9)
    executor.close()


def iteration(step: int) -> SchedulerOutput:
    return SchedulerOutput(step, ())


def test_iterations_and_moves_are_carried_out_in_the_order_in_which_they_come(
    executor: ThreadedExecutor, worker: ScriptedWorker
) -> None:
    orders = WorkerOrders(punched=(3,))
    executor.submit(iteration(1))
    executor.move(orders)
    executor.submit(iteration(2))
    assert worker.done == []
    worker.may_run.release(2)
    assert [executor.collect(), executor.collect()] == [StepResult(1, ()), StepResult(2, ())]
    assert worker.done == [1, orders, 2]


def test_who_waits_for_an_iteration_can_be_interrupted(executor: ThreadedExecutor) -> None:
    executor.submit(iteration(1))
    threading.Timer(0.01, executor.interrupt).start()
    assert executor.collect() is None


def test_an_iteration_that_fails_fails_who_collects_it(
    executor: ThreadedExecutor, worker: ScriptedWorker
) -> None:
    executor.submit(iteration(-1))
    worker.may_run.release()
    with pytest.raises(ZeroDivisionError, match="a bug"):
        executor.collect()


def test_a_move_that_fails_is_not_passed_over(
    executor: ThreadedExecutor, worker: ScriptedWorker
) -> None:
    executor.move(WorkerOrders(punched=(-1,)))
    executor.submit(iteration(1))
    worker.may_run.release()
    executor.collect()
    with pytest.raises(ZeroDivisionError, match="in a move"):
        executor.take_finished()


def test_closing_ends_the_thread_and_then_the_worker(worker: ScriptedWorker) -> None:
    before = set(threading.enumerate())
    executor = ThreadedExecutor(worker)  # type: ignore[arg-type]
    executor.submit(iteration(1))
    worker.may_run.release()
    executor.collect()
    executor.close()
    assert worker.done == [1, "closed"]
    assert set(threading.enumerate()) <= before


def test_an_executor_that_nobody_closes_keeps_no_worker() -> None:
    before = set(threading.enumerate())
    worker = ScriptedWorker()
    executor = ThreadedExecutor(worker)  # type: ignore[arg-type]
    executor.submit(iteration(1))
    worker.may_run.release()
    executor.collect()
    threads = set(threading.enumerate()) - before
    is_kept = weakref.ref(worker)
    del worker, executor
    gc.collect()
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert is_kept() is None
