"""Blocks come back from every tier as they went, and what goes wrong is said in the result."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fabric.engine.device_blocks import CpuBlocks, Pairs
from fabric.engine.settings import ParkingSettings
from fabric.kv.transfer import BlockOrders, Direction, Tier, Transfer
from tests.unit.mover_world import (
    NUM_BLOCKS,
    FaultyBlocks,
    Moving,
    block_format,
    random_cache,
    start_moving,
)

OUT, IN, HOST, DISK = Direction.OUT, Direction.IN, Tier.HOST, Tier.DISK
SCATTERED = ((3, 7), (4, 8), (9, 0), (0, 3))

Start = Callable[..., Moving]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts movers over fresh caches, and closes them in the end."""
    movings: list[Moving] = []
    settings = ParkingSettings(host_bytes=2**16, disk_bytes=2**17, disk_dir=tmp_path)

    def start(dtype: torch.dtype = torch.float32, **changes: object) -> Moving:
        changed = replace(settings, **changes)  # type: ignore[arg-type]
        movings.append(start_moving(changed, random_cache(dtype)))
        return movings[-1]

    yield start
    for moving in movings:
        moving.close()


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tier", [HOST, DISK])
def test_blocks_return_bitwise_to_other_blocks(
    start: Start, tier: Tier, dtype: torch.dtype, debug: bool
) -> None:
    moving = start(dtype, debug=debug)
    before = moving.cache.clone()
    out = moving.run(1, OUT, tier, SCATTERED)
    assert (out.number, out.error) == (1, "")
    assert out.num_bytes == 4 * block_format(dtype).block_bytes
    back = [(20 + i, slot) for i, (_, slot) in enumerate(SCATTERED)]
    result = moving.run(2, IN, tier, back)
    assert (result.number, result.error) == (2, "")
    expected = before.clone()
    expected[20:24] = before[[block for block, _ in SCATTERED]]
    assert torch.equal(moving.cache, expected)


@pytest.mark.parametrize("tier", [HOST, DISK])
def test_every_slot_can_be_used(start: Start, tier: Tier) -> None:
    moving = start(debug=True)
    num_slots = moving.tiers[tier].num_slots
    assert num_slots > NUM_BLOCKS
    for first in range(0, num_slots, NUM_BLOCKS):
        slots = range(first, min(first + NUM_BLOCKS, num_slots))
        assert not moving.run(1, OUT, tier, list(enumerate(slots))).error
    before = moving.cache.clone()
    moving.cache.zero_()
    assert not moving.run(2, IN, tier, [(i, i) for i in range(NUM_BLOCKS)]).error
    assert torch.equal(moving.cache, before)


def test_poisoned_blocks_are_nan_before_transfers_begin(start: Start) -> None:
    moving = start()
    before = moving.cache.clone()
    transfer = Transfer(1, OUT, HOST, ((5, 0), (6, 1)))
    moving.mover.move(BlockOrders((2, 5), (transfer,)))
    assert not moving.wait().error
    assert moving.cache[[2, 5]].isnan().all()
    others = [i for i in range(NUM_BLOCKS) if i not in (2, 5)]
    assert torch.equal(moving.cache[others], before[others])
    moving.run(2, IN, HOST, [(0, 0), (1, 1)])
    assert moving.cache[0].isnan().all()
    assert torch.equal(moving.cache[1], before[6])


def test_a_delay_falls_between_the_halves_and_move_does_not_wait_for_it(start: Start) -> None:
    moving = start(delay_s=0.2)
    start_s = time.perf_counter()
    moving.begin(1, OUT, HOST, [(0, 0), (1, 1)])
    assert time.perf_counter() - start_s < 0.1
    # A block that is written before its copy is over, as no scheduler must.
    time.sleep(0.05)
    moving.cache[0] = 7.0
    moving.cache[1] = 7.0
    result = moving.wait()
    assert result.copy_s >= 0.2
    moving.run(2, IN, HOST, [(0, 0), (1, 1)])
    assert torch.equal(moving.cache[0], random_cache()[0])
    assert (moving.cache[1] == 7.0).all()


def test_transfers_wait_in_line_and_say_how_long(start: Start) -> None:
    moving = start(delay_s=0.1)
    for number in (1, 2):
        moving.begin(number, OUT, HOST, [(number, number)])
    first, second = moving.wait(), moving.wait()
    assert (first.number, second.number) == (1, 2)
    assert first.queue_s < 0.1 <= second.queue_s


def test_two_copy_threads_copy_at_once(start: Start) -> None:
    moving = start(delay_s=0.2, num_copy_threads=2)
    start_s = time.perf_counter()
    for number in (1, 2):
        moving.begin(number, OUT, HOST, [(number, number)])
    assert {moving.wait().number, moving.wait().number} == {1, 2}
    assert time.perf_counter() - start_s < 0.35


@pytest.mark.parametrize("tier", [HOST, DISK])
def test_debug_mode_finds_a_byte_that_changes_on_the_way_in(tmp_path: Path, tier: Tier) -> None:
    settings = ParkingSettings(host_bytes=2**16, disk_bytes=2**17, disk_dir=tmp_path, debug=True)
    moving = start_moving(settings, random_cache(), FaultyBlocks)
    assert not moving.run(1, OUT, tier, SCATTERED).error
    assert moving.run(2, IN, tier, SCATTERED).error.endswith(
        "slot 3 for block 0 is not what was stored"
    )
    moving.close()


@pytest.mark.parametrize("tier", [HOST, DISK])
def test_debug_mode_finds_a_block_that_changes_while_it_is_copied_out(
    tmp_path: Path, tier: Tier
) -> None:
    class Racing(CpuBlocks):
        """Blocks that an iteration still writes to."""

        def copy_out(self, pairs: Pairs, slots: Tensor, fence: object) -> None:
            self._kv_cache[pairs[0][0]] += 1.0
            super().copy_out(pairs, slots, fence)

    settings = ParkingSettings(host_bytes=2**16, disk_bytes=2**17, disk_dir=tmp_path, debug=True)
    moving = start_moving(settings, random_cache(), Racing)
    assert not moving.run(1, OUT, tier, SCATTERED).error
    error = moving.run(2, IN, tier, SCATTERED).error
    assert error.endswith("slot 7 for block 3 is not what was stored")
    moving.close()


def test_a_rate_limit_holds_over_transfers(start: Start) -> None:
    block_bytes = block_format().block_bytes
    moving = start(max_bytes_per_s=block_bytes * 100)
    start_s = time.perf_counter()
    for number in range(4):
        moving.begin(number, OUT, HOST, [(i, i) for i in range(5)])
    for _ in range(4):
        assert not moving.wait().error
    assert time.perf_counter() - start_s == pytest.approx(0.2, abs=0.05)


def test_a_tier_that_is_not_there_is_an_error(start: Start) -> None:
    moving = start(disk_bytes=0)
    assert moving.run(1, OUT, DISK, [(0, 0)]).error == "there is no disk tier"


def test_a_slot_that_is_not_there_is_an_error_and_the_next_transfer_goes_on(start: Start) -> None:
    moving = start()
    result = moving.run(1, OUT, HOST, [(0, 10_000)])
    assert result.error
    assert result.num_bytes == 0
    assert not moving.run(2, OUT, HOST, [(0, 0)]).error


def test_close_ends_threads_and_does_not_sit_out_delays(start: Start) -> None:
    before = set(threading.enumerate())
    moving = start(delay_s=60.0)
    assert {thread.name for thread in set(threading.enumerate()) - before} == {"copy-0"}
    for number in (1, 2):
        moving.begin(number, OUT, HOST, [(0, 0)])
    start_s = time.perf_counter()
    moving.mover.close()
    assert time.perf_counter() - start_s < 5.0
    assert set(threading.enumerate()) <= before
