"""Measures how fast KV blocks are copied between a device group and where it parks them."""

import logging
import statistics
import time
from dataclasses import dataclass

from fabric.core.errors import GroupError
from fabric.core.profile import CopySpeed
from fabric.engine.block_tier import CopyFailed
from fabric.engine.executor import ReadyExecutor
from fabric.kv.transfer import BlockOrders, Direction, Tier, Transfer, WorkerOrders

logger = logging.getLogger(__name__)

TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class CopyLimits:
    """How much is copied: ``num_bytes`` at once, in ``max_s`` at most; ``num_repeats`` of each."""

    num_bytes: int
    max_s: float
    num_repeats: int


def measure_copies(
    executor: ReadyExecutor, model: int, num_blocks: int, limits: CopyLimits
) -> tuple[CopySpeed, ...]:
    """Time copies of one block and of many, to and from each tier that there is.

    What the first blocks and the first slots hold is overwritten.

    Args:
        executor: Drives workers that are idle.
        model: The place of the model whose blocks are copied.
        num_blocks: Its blocks that the device has.
        limits: How much to copy, as long as it fits.

    Raises:
        GroupError: The workers can't go on, or a copy never ends.
    """
    timer = _CopyTimer(executor, model, limits)
    speeds: list[CopySpeed] = []
    for tier in Tier:
        if num_slots := executor.models[model].space.num_slots(tier):
            try:
                speeds += timer.both_ways(tier, min(num_slots, num_blocks))
            except CopyFailed as error:
                logger.warning("copies to %s were not measured: %s", tier, error)
    return tuple(speeds)


class _CopyTimer:
    def __init__(self, executor: ReadyExecutor, model: int, limits: CopyLimits) -> None:
        self._executor = executor
        self._model = model
        self._block_bytes = executor.models[model].space.block_bytes
        self._limits = limits
        # The scheduler's numbers go upwards from 0, and none may be used twice.
        self._number = 0

    def both_ways(self, tier: Tier, max_blocks: int) -> list[CopySpeed]:
        """First out, then in, since what is to come back must have gone out."""
        one_s = self._median_s(tier, Direction.OUT, 1)
        wanted = min(self._limits.num_bytes // self._block_bytes, int(self._limits.max_s / one_s))
        num_blocks = max(1, min(max_blocks, wanted))
        return [self._speed(tier, way, num_blocks) for way in (Direction.OUT, Direction.IN)]

    def _speed(self, tier: Tier, direction: Direction, num_blocks: int) -> CopySpeed:
        many_s = self._median_s(tier, direction, num_blocks)
        one_s = self._median_s(tier, direction, 1)
        block_s = (many_s - one_s) / (num_blocks - 1) if num_blocks > 1 else one_s
        if block_s <= 0.0:
            block_s = many_s / num_blocks
        return CopySpeed(
            tier, direction, self._block_bytes / block_s, latency_s=max(0.0, one_s - block_s)
        )

    def _median_s(self, tier: Tier, direction: Direction, num_blocks: int) -> float:
        times = [self._time(tier, direction, num_blocks)]
        while len(times) < self._limits.num_repeats and sum(times) < self._limits.max_s:
            times.append(self._time(tier, direction, num_blocks))
        return statistics.median(times)

    def _time(self, tier: Tier, direction: Direction, num_blocks: int) -> float:
        self._number -= 1
        pairs = tuple((i, i) for i in range(num_blocks))
        transfer = Transfer(self._number, direction, tier, pairs)
        orders = BlockOrders(transfers=(transfer,), model=self._model)
        start_s = time.perf_counter()
        self._executor.move(WorkerOrders(blocks=(orders,)))
        results = self._executor.take_finished(TIMEOUT_S)
        elapsed_s = time.perf_counter() - start_s
        if not results:
            raise GroupError(f"a copy to or from {tier} takes longer than {TIMEOUT_S} s")
        if results[0].error:
            raise CopyFailed(results[0].error)
        return elapsed_s
