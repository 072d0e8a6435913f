"""Measures how fast KV blocks are copied between a device group and where it parks them."""

import logging
import statistics
import time

from fabric.core.errors import GroupError
from fabric.core.profile import CopySpeed
from fabric.engine.executor import Executor
from fabric.kv.transfer import BlockOrders, Direction, Tier, Transfer

logger = logging.getLogger(__name__)

TIMEOUT_S = 30.0


class CopyFailed(Exception):
    """A tier can't be used."""


def measure_copies(
    executor: Executor, num_blocks: int, num_bytes: int, num_repeats: int
) -> tuple[CopySpeed, ...]:
    """Time copies of one block and of many, to and from each tier that there is.

    What the first blocks and the first slots hold is overwritten.

    Args:
        executor: Drives workers that are idle.
        num_blocks: Blocks that the device has.
        num_bytes: What a copy of many blocks should move; it is cut at what fits.
        num_repeats: Of each copy.

    Raises:
        GroupError: The workers can't go on, or a copy never ends.
    """
    timer = _CopyTimer(executor, num_repeats)
    wanted = num_bytes // max(1, executor.space.block_bytes)
    speeds: list[CopySpeed] = []
    for tier in Tier:
        if num_slots := executor.space.num_slots(tier):
            most = max(1, min(wanted, num_slots, num_blocks))
            try:
                # What is to come back must have gone out.
                speeds += [timer.speed(tier, way, most) for way in (Direction.OUT, Direction.IN)]
            except CopyFailed as error:
                logger.warning("copies to %s were not measured: %s", tier, error)
    return tuple(speeds)


class _CopyTimer:
    def __init__(self, executor: Executor, num_repeats: int) -> None:
        self._executor = executor
        self._num_repeats = num_repeats
        # The scheduler's numbers go upwards from 0, and none may be used twice.
        self._number = 0

    def speed(self, tier: Tier, direction: Direction, num_blocks: int) -> CopySpeed:
        block_bytes = self._executor.space.block_bytes
        many_s = self._median_s(tier, direction, num_blocks)
        one_s = self._median_s(tier, direction, 1)
        block_s = (many_s - one_s) / (num_blocks - 1) if num_blocks > 1 else one_s
        if block_s <= 0.0:
            block_s = many_s / num_blocks
        latency_s = max(0.0, one_s - block_s)
        return CopySpeed(tier, direction, block_bytes / block_s, latency_s)

    def _median_s(self, tier: Tier, direction: Direction, num_blocks: int) -> float:
        times = [self._time(tier, direction, num_blocks) for _ in range(self._num_repeats)]
        return statistics.median(times)

    def _time(self, tier: Tier, direction: Direction, num_blocks: int) -> float:
        self._number -= 1
        pairs = tuple((i, i) for i in range(num_blocks))
        orders = BlockOrders(transfers=(Transfer(self._number, direction, tier, pairs),))
        start_s = time.perf_counter()
        self._executor.move(orders)
        results = self._executor.take_moved(TIMEOUT_S)
        elapsed_s = time.perf_counter() - start_s
        if not results:
            raise GroupError(f"a copy to or from {tier} takes longer than {TIMEOUT_S} s")
        if results[0].error:
            raise CopyFailed(results[0].error)
        return elapsed_s
