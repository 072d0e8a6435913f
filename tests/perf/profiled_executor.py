"""Holds devices against profiles, a model each, and stands for them in simulations."""

import time
from collections import deque
from collections.abc import Sequence

from contenders import answer

from fabric.core.clock import VirtualClock
from fabric.core.profile import Profile
from fabric.engine.executor import ExecutorCosts, Finished
from fabric.engine.local_executor import LocalExecutor
from fabric.engine.preparation import load_weights
from fabric.engine.settings import WorkerSettings
from fabric.engine.worker import Worker
from fabric.kv.transfer import BlockOrders, ParkingSpace, TransferResult, WorkerOrders
from fabric.scheduler.output import SchedulerOutput, StepResult
from placement.simulator.iteration_time import iteration_s


class TimedExecutor(LocalExecutor):
    """A worker in this process that has all its models on the device, with a profile for each.

    ``slowdown`` is what iterations took by what they should have.
    """

    def __init__(self, settings: WorkerSettings, profiles: Sequence[Profile]) -> None:
        super().__init__(Worker(settings))
        for number in range(len(self.models)):
            load_weights(self, number)
        self._profiles = profiles
        self._took_s = 0.0
        self._expected_s = 0.0

    @property
    def slowdown(self) -> float:
        return self._took_s / self._expected_s

    def submit(self, output: SchedulerOutput) -> None:
        start_s = time.perf_counter()
        super().submit(output)
        self._took_s += time.perf_counter() - start_s
        self._expected_s += iteration_s(self._profiles[output.model], output)


class ProfiledExecutor:
    """Answers without models; iterations, and copies beside them, take the profiles' times.

    ``profiles`` and ``spaces`` are the models', in their order; one link carries all copies, one
    after the other.
    """

    num_batches = 1
    runs_ahead = False
    failure = None
    costs = ExecutorCosts()
    slowdown = 1.0

    def __init__(
        self,
        profiles: Sequence[Profile],
        clock: VirtualClock,
        spaces: Sequence[ParkingSpace],
        max_bytes_per_s: float | None = None,
    ) -> None:
        self._profiles = profiles
        self._spaces = spaces
        self._clock = clock
        self._max_bytes_per_s = max_bytes_per_s
        self._results: deque[StepResult] = deque()
        self._moving: deque[tuple[float, TransferResult]] = deque()

    def submit(self, output: SchedulerOutput) -> None:
        self._clock.advance(iteration_s(self._profiles[output.model], output))
        self._results.append(answer(output))

    def collect(self) -> StepResult:
        return self._results.popleft()

    def move(self, orders: WorkerOrders) -> None:
        assert not orders.weights, "profiles don't say how long weights take"
        for blocks in orders.blocks:
            self._copy(blocks)

    def take_finished(self, timeout_s: float = 0.0) -> list[Finished]:
        if timeout_s and self._moving:
            wait_s = min(timeout_s, self._moving[0][0] - self._clock.now())
            self._clock.advance(max(0.0, wait_s))
        finished = list[Finished]()
        while self._moving and self._moving[0][0] <= self._clock.now():
            finished.append(self._moving.popleft()[1])
        return finished

    def close(self) -> None:
        pass

    def _copy(self, orders: BlockOrders) -> None:
        now_s = self._clock.now()
        profile, block_bytes = self._profiles[orders.model], self._spaces[orders.model].block_bytes
        for transfer in orders.transfers:
            num_bytes = len(transfer.pairs) * block_bytes
            copy_s = profile.copy_s(transfer.tier, transfer.direction, num_bytes)
            if self._max_bytes_per_s is not None:
                copy_s = max(copy_s, num_bytes / self._max_bytes_per_s)
            start_s = max(now_s, self._moving[-1][0]) if self._moving else now_s
            result = TransferResult(transfer.number, "", num_bytes, start_s - now_s, copy_s)
            self._moving.append((start_s + copy_s, result))
