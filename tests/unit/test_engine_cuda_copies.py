"""What is given to a GPU's streams around copies, and in which order; no GPU is needed."""

import pytest
import torch
from torch import Tensor

from fabric.engine.arena import Arena
from fabric.engine.block_addresses import BlockAddresses
from fabric.engine.cuda_copies import CudaBlocks, runs, slot_runs
from fabric.engine.device_blocks import BlockFormat, block_rows, bytes_of, digests
from fabric.engine.memory_plan import DeviceMemory
from tests.unit.fake_cuda import FakeCuda

# 320 bytes, 5 steps.
BLOCK = BlockFormat((2, 2, 1, 4, 5), torch.float32)
NUM_SLABS, SLAB_BYTES = 4, 4096
MEMORY = DeviceMemory(SLAB_BYTES, NUM_SLABS, (0,), (12,))
ADDRESSES = BlockAddresses.in_slabs(MEMORY, 0, BLOCK.block_bytes)
SCATTERED = [(3, 1), (30, 0), (9, 5), (4, 2)]


@pytest.fixture
def cuda() -> FakeCuda:
    return FakeCuda()


@pytest.fixture
def cache() -> Tensor:
    cache = Arena(NUM_SLABS, SLAB_BYTES).view(BLOCK)
    for block in range(NUM_SLABS * 12):
        cache[ADDRESSES.step(block)] = torch.full(BLOCK.shape, float(block))
    return cache


@pytest.fixture
def blocks(cuda: FakeCuda, cache: Tensor) -> CudaBlocks:
    return CudaBlocks(cache, cuda, ADDRESSES)


@pytest.fixture
def slots() -> Tensor:
    return torch.zeros(8, *BLOCK.shape)


def firsts(slots: Tensor) -> list[float]:
    """A number of each slot, which must be the same all over it."""
    rows = slots.flatten(1)
    assert torch.equal(rows, rows[:, :1].expand_as(rows))
    return rows[:, 0].tolist()


def test_blocks_reach_their_slots(blocks: CudaBlocks, slots: Tensor) -> None:
    blocks.copy_out(SCATTERED, slots, blocks.fence())
    assert firsts(slots) == [30, 3, 4, 0, 0, 9, 0, 0]


def test_slots_reach_their_blocks(blocks: CudaBlocks, slots: Tensor, cache: Tensor) -> None:
    for slot in range(8):
        slots[slot] = 100.0 + slot
    blocks.copy_in(SCATTERED, slots, blocks.fence())
    found = firsts(cache[[ADDRESSES.step(block) for block in (30, 3, 4, 9, 5, 2)]])
    assert found == [100, 101, 102, 105, 5, 2]


def test_scattered_blocks_are_gathered_behind_the_fence_and_copied_behind_that(
    cuda: FakeCuda, blocks: CudaBlocks, slots: Tensor
) -> None:
    blocks.pin(slots)
    cuda.log.clear()
    blocks.copy_out(SCATTERED, slots, blocks.fence())
    assert cuda.log == [
        "event 1 behind iterations",
        "copies wait for event 1",
        "event 2 behind iterations",
        "into moves",
        "moves wait for event 1",
        "moves wait for event 2",
        "event 3 behind moves",
        "out again",
        "into copies",
        "copies wait for event 3",
        "event 4 behind copies",
        "out again",
    ]
    assert cuda.num_queries == 4


def test_what_comes_back_is_scattered_behind_its_copy(
    cuda: FakeCuda, blocks: CudaBlocks, slots: Tensor
) -> None:
    blocks.copy_in(SCATTERED, slots, blocks.fence())
    at = cuda.log.index("into copies")
    assert cuda.log[at:] == [
        "into copies",
        "copies wait for event 1",
        "copies wait for event 2",
        "event 3 behind copies",
        "out again",
        "into moves",
        "moves wait for event 3",
        "event 4 behind moves",
        "out again",
    ]


def test_a_staging_is_used_again_only_behind_its_last_copy(
    cuda: FakeCuda, cache: Tensor, slots: Tensor
) -> None:
    blocks = CudaBlocks(cache, cuda, ADDRESSES, staging_bytes=2 * BLOCK.block_bytes)
    blocks.copy_out([(2 * i, i) for i in range(7)], slots, blocks.fence())
    assert firsts(slots) == [0, 2, 4, 6, 8, 10, 12, 0]
    waits = [line for line in cuda.log if line.startswith("moves wait")]
    # Copies 4, 6, 8 and 10 are recorded by the events of their numbers.
    assert waits[1::2] == [f"moves wait for event {i}" for i in (2, 2, 4, 6)]


def test_large_runs_are_copied_without_being_gathered(
    cuda: FakeCuda, blocks: CudaBlocks, slots: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fabric.engine.cuda_copies.LARGE_BYTES", BLOCK.block_bytes)
    fence = blocks.fence()
    blocks.copy_out([(11, 4), (12, 5), (13, 6), (2, 0)], slots, fence)
    assert firsts(slots) == [2, 0, 0, 0, 11, 12, 13, 0]
    assert "into moves" not in cuda.log
    blocks.copy_in([(20, 4), (21, 5), (22, 6), (23, 0)], slots, fence)
    assert "into moves" not in cuda.log


@pytest.mark.parametrize("large_bytes", [1, 2**30])
def test_slots_with_gaps_between_them_are_copied_one_by_one(
    blocks: CudaBlocks, monkeypatch: pytest.MonkeyPatch, large_bytes: int, cache: Tensor
) -> None:
    monkeypatch.setattr("fabric.engine.cuda_copies.LARGE_BYTES", large_bytes)
    memory = torch.full((8, 100), -1.0)
    slots = memory[:, :80].view(8, *BLOCK.shape)
    pairs = [(5, 0), (6, 1), (40, 2)]
    blocks.copy_out(pairs, slots, blocks.fence())
    assert firsts(slots[:3]) == [5, 6, 40]
    assert bool((memory[:, 80:] == -1.0).all())
    slots[:3] += 100.0
    blocks.copy_in(pairs, slots, blocks.fence())
    assert firsts(cache[[ADDRESSES.step(block) for block in (5, 6, 40, 7)]]) == [105, 106, 140, 7]


def test_memory_is_pinned_once(cuda: FakeCuda, blocks: CudaBlocks, slots: Tensor) -> None:
    for _ in range(2):
        blocks.copy_out(SCATTERED, slots, blocks.fence())
    assert [line for line in cuda.log if line.startswith("pin")] == [f"pin {slots.nbytes}"]


def test_memory_that_cannot_be_pinned_is_copied_with_a_warning(
    cuda: FakeCuda, blocks: CudaBlocks, slots: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    cuda.register_error = 2
    for _ in range(2):
        blocks.copy_out(SCATTERED, slots, blocks.fence())
    assert firsts(slots) == [30, 3, 4, 0, 0, 9, 0, 0]
    assert [record.getMessage() for record in caplog.records] == [
        "2560 bytes of host memory can't be pinned, CUDA error 2: copies to them are slow"
    ]


def test_digests_are_of_the_blocks_bytes(blocks: CudaBlocks, cache: Tensor) -> None:
    expected = digests(bytes_of(cache), [ADDRESSES.step(7), ADDRESSES.step(31)])
    assert blocks.digests([7, 31], blocks.fence()) == expected


def test_poison_fills_the_blocks_and_no_others(blocks: CudaBlocks, cache: Tensor) -> None:
    blocks.poison([5, 13])
    assert cache[[ADDRESSES.step(5), ADDRESSES.step(13)]].isnan().all()
    assert firsts(cache[[ADDRESSES.step(block) for block in (4, 6, 12, 14)]]) == [4, 6, 12, 14]


@pytest.mark.parametrize("shape", [(1, 2, 1, 1, 3), (1, 2, 1, 2, 3), (2, 2, 1, 4, 5)])
def test_rows_are_the_blocks_bytes(shape: tuple[int, ...]) -> None:
    blocks = torch.randn(5, *shape).bfloat16()
    rows = block_rows(blocks)
    assert rows.data_ptr() == blocks.data_ptr()
    assert torch.equal(rows.view(torch.uint8), blocks.flatten(1).view(torch.uint8))


def test_runs_join_what_follows_on_both_sides() -> None:
    assert runs([]) == []
    assert runs([(1, 1), (2, 2), (3, 4), (4, 5), (6, 6)]) == [(1, 1, 2), (3, 4, 2), (6, 6, 1)]


def test_slots_with_gaps_make_no_runs() -> None:
    assert slot_runs([(9, 1), (2, 2)], has_gaps=True) == [(0, 1, 1), (1, 2, 1)]


def test_runs_of_slots_join_blocks_from_anywhere() -> None:
    assert slot_runs([(9, 1), (2, 2), (5, 4)]) == [(0, 1, 2), (2, 4, 1)]


def test_what_is_used_of_torch_cuda_is_there() -> None:
    for name in ("Event", "Stream", "current_stream", "stream", "cudart", "empty_cache"):
        assert callable(getattr(torch.cuda, name))
