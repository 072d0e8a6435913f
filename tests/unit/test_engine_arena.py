"""Blocks of every size lie in one arena, and kernels find them there."""

import mmap
import resource
from pathlib import Path

import pytest
import torch

from fabric.engine.arena import Arena
from fabric.engine.block_addresses import BlockAddresses
from fabric.engine.device_blocks import BlockFormat, CpuBlocks
from fabric.engine.memory_plan import DeviceMemory
from kernels.dispatch import available_backends, select_backend
from kernels.ops import RaggedBatch

SLAB_BYTES = 16 * 4096
NUM_SLABS = 6
# Of 3072, 4608 and 2272 bytes; slabs are a multiple of none, and the last is none of 64.
FORMATS = (
    BlockFormat((3, 2, 2, 4, 16), torch.float32),
    BlockFormat((2, 2, 3, 4, 48), torch.bfloat16),
    BlockFormat((1, 2, 1, 4, 142), torch.bfloat16),
)


def addresses_of(block: BlockFormat) -> BlockAddresses:
    blocks_per_slab = SLAB_BYTES // (-(-block.block_bytes // 64) * 64)
    memory = DeviceMemory(SLAB_BYTES, NUM_SLABS, (0,), (blocks_per_slab,))
    return BlockAddresses.in_slabs(memory, 0, block.block_bytes)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


@pytest.mark.parametrize("block", FORMATS, ids=lambda block: str(block.block_bytes))
def test_every_block_of_every_slab_keeps_what_is_written_to_it(block: BlockFormat) -> None:
    kv_cache = Arena(NUM_SLABS, SLAB_BYTES).view(block)
    addresses = addresses_of(block)
    blocks = range(NUM_SLABS * addresses.blocks_per_slab)
    steps = addresses.steps(blocks)
    assert steps.tolist() == [addresses.step(i) for i in blocks]
    for i, step in enumerate(steps.tolist()):
        kv_cache[step] = float(i % 251)
    for i, step in enumerate(steps.tolist()):
        assert (kv_cache[step] == float(i % 251)).all()
        assert kv_cache[step].is_contiguous()


def test_blocks_of_two_models_in_different_slabs_leave_each_other_alone() -> None:
    arena = Arena(NUM_SLABS, SLAB_BYTES)
    views = [arena.view(block) for block in FORMATS[:2]]
    addresses = [addresses_of(block) for block in FORMATS[:2]]
    for i in range(NUM_SLABS):
        count = addresses[i % 2].blocks_per_slab
        for step in addresses[i % 2].steps(range(i * count, (i + 1) * count)).tolist():
            views[i % 2][step] = float(i + 1)
    for i in range(NUM_SLABS):
        count = addresses[i % 2].blocks_per_slab
        for step in addresses[i % 2].steps(range(i * count, (i + 1) * count)).tolist():
            assert (views[i % 2][step] == float(i + 1)).all()


@pytest.mark.parametrize("name", available_backends("cpu"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_compute_in_an_arena_what_they_compute_in_a_dense_cache(
    name: str, dtype: torch.dtype
) -> None:
    backend = select_backend("cpu", name, 1)
    block = BlockFormat((2, 2, 2, 4, 16), dtype)
    addresses = addresses_of(block)
    arena, dense = Arena(NUM_SLABS, SLAB_BYTES).view(block), torch.zeros(200, *block.shape)
    dense = dense.to(dtype)
    generator = torch.Generator().manual_seed(0)
    key, value = (torch.randn((10, 2, 16), generator=generator).to(dtype) for _ in range(2))
    query = torch.randn((10, 4, 16), generator=generator).to(dtype)
    table = [150, 3, 77]
    outputs = []
    for cache, blocks in ((dense, table), (arena, addresses.steps(table).tolist())):
        slots = torch.tensor([blocks[i // 4] * 4 + i % 4 for i in range(10)])
        backend.store_kv(key, value, cache, 1, slots)
        batch = RaggedBatch(
            positions=torch.arange(10, dtype=torch.int32),
            slots=slots,
            query_start=torch.tensor([0, 10], dtype=torch.int32),
            context_lens=torch.tensor([10], dtype=torch.int32),
            block_tables=torch.tensor([blocks], dtype=torch.int32),
        )
        outputs.append(backend.paged_attention(query, cache, 1, batch, 0.25))
    assert torch.equal(*outputs)


def test_blocks_are_copied_poisoned_and_digested_where_they_lie() -> None:
    block = FORMATS[0]
    addresses, cache = addresses_of(block), Arena(NUM_SLABS, SLAB_BYTES).view(block)
    blocks = CpuBlocks(cache, select_backend("cpu", None, 1), addresses)
    slots = torch.randn((4, *block.shape), generator=torch.Generator().manual_seed(1))
    places = [addresses.blocks_per_slab - 1, addresses.blocks_per_slab, 100]
    blocks.copy_in(list(zip(places, range(3), strict=True)), slots, None)
    steps = addresses.steps(places).tolist()
    assert torch.equal(cache[steps], slots[:3])
    back = torch.zeros_like(slots)
    blocks.copy_out([(places[2], 0)], back, None)
    assert torch.equal(back[0], slots[2])
    before = blocks.digests(places, None)
    assert len(set(before)) == 3
    blocks.poison(places[:1])
    assert cache[steps[0]].isnan().all()
    assert blocks.digests(places, None)[1:] == before[1:]


def test_the_last_step_is_the_last_where_a_block_fits() -> None:
    for block in FORMATS:
        cache = Arena(1, SLAB_BYTES).view(block)
        assert 0 <= SLAB_BYTES - (len(cache) - 1) * 64 - block.block_bytes < 64


def test_slabs_that_nobody_wrote_to_take_no_memory_and_punched_ones_give_theirs_back() -> None:
    before = resident_bytes()
    slab_bytes = 32 * 2**20
    arena = Arena(1024, slab_bytes)
    block = BlockFormat((2, 2, 2, 16, 64), torch.float32)
    cache = arena.view(block)
    assert resident_bytes() - before < slab_bytes
    steps_per_slab = slab_bytes // 64
    for slab in (2, 3, 9):
        flat = cache[slab * steps_per_slab : (slab + 1) * steps_per_slab : block.block_bytes // 64]
        flat.fill_(1.0)
    assert resident_bytes() - before > 2.9 * slab_bytes
    arena.punch((9, 3))
    assert resident_bytes() - before < 1.9 * slab_bytes
    assert (cache[2 * steps_per_slab] == 1.0).all()
    assert (cache[3 * steps_per_slab] == 0.0).all()
    assert (cache[9 * steps_per_slab] == 0.0).all()


def test_memory_goes_with_the_last_tensor_over_it() -> None:
    cache = Arena(4, mmap.PAGESIZE).view(BlockFormat((1, 2, 1, 4, 16), torch.float32))
    cache[5] = 3.0
    assert (cache[5] == 3.0).all()
