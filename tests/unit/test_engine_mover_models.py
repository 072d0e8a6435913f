"""One mover serves all models of a device: blocks of each size go to slots of their own."""

import queue
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from fabric.engine.arena import Arena
from fabric.engine.block_addresses import BlockAddresses
from fabric.engine.device_blocks import BlockFormat, CpuBlocks
from fabric.engine.memory_plan import DeviceMemory
from fabric.engine.mover import ModelBlocks, Mover
from fabric.engine.settings import ParkingSettings
from fabric.engine.tiers import open_tiers, split_parking
from fabric.kv.transfer import BlockOrders, Direction, Tier, Transfer, TransferResult
from kernels.dispatch import select_backend
from tests.unit.mover_world import TIMEOUT_S, block_format

SLAB_BYTES = 2**15
SLABS_EACH = 3
NUM_PARKED = 10
FORMATS = (block_format(), BlockFormat((2, 2, 3, 4, 24), torch.bfloat16))


@dataclass
class Hosted:
    """A model's view of the arena, and those of its blocks that lie in its slabs."""

    cache: Tensor
    addresses: BlockAddresses
    blocks: range

    def held(self) -> Tensor:
        """What its blocks hold."""
        return self.cache[self.addresses.steps(self.blocks)]

    def transfer(self, number: int, direction: Direction) -> Transfer:
        pairs = tuple((block, slot) for slot, block in enumerate(self.blocks[:NUM_PARKED]))
        return Transfer(number, direction, Tier.HOST, pairs)


def host(arena: Arena, block: BlockFormat, place: int) -> Hosted:
    """Give a model three slabs of the arena, full of noise."""
    count = SLAB_BYTES // block.block_bytes
    addresses = BlockAddresses.in_slabs(
        DeviceMemory(SLAB_BYTES, 2 * SLABS_EACH, (), (count,)), 0, block.block_bytes
    )
    first = place * SLABS_EACH * count
    hosted = Hosted(arena.view(block), addresses, range(first, first + SLABS_EACH * count))
    noise = torch.randn(hosted.held().shape, generator=torch.Generator().manual_seed(place))
    hosted.cache[addresses.steps(hosted.blocks)] = noise.to(block.dtype)
    return hosted


@pytest.fixture
def results() -> "queue.SimpleQueue[TransferResult]":
    return queue.SimpleQueue()


@pytest.fixture
def models() -> list[Hosted]:
    arena = Arena(2 * SLABS_EACH, SLAB_BYTES)
    return [host(arena, block, place) for place, block in enumerate(FORMATS)]


@pytest.fixture
def mover(models: list[Hosted], results: "queue.SimpleQueue[TransferResult]") -> Iterator[Mover]:
    settings = ParkingSettings(host_bytes=2**18, debug=True)
    share, backend = split_parking(settings, len(FORMATS)), select_backend("cpu", None, 1)
    started = Mover(
        [
            ModelBlocks(
                CpuBlocks(model.cache, backend, model.addresses),
                open_tiers(share, block),
                block.block_bytes,
            )
            for model, block in zip(models, FORMATS, strict=True)
        ],
        settings,
        results.put,
    )
    yield started
    started.close()


def test_blocks_of_both_models_come_back_to_where_they_were(
    models: list[Hosted], mover: Mover, results: "queue.SimpleQueue[TransferResult]"
) -> None:
    before = [model.held() for model in models]
    for i, direction in enumerate((Direction.OUT, Direction.IN)):
        for place, model in enumerate(models):
            transfer = model.transfer(2 * i + place, direction)
            mover.move(BlockOrders(transfers=(transfer,), model=place))
        done = [results.get(timeout=TIMEOUT_S) for _ in models]
        assert [(result.number, result.error) for result in done] == [(2 * i, ""), (2 * i + 1, "")]
        assert [result.num_bytes for result in done] == [
            NUM_PARKED * block.block_bytes for block in FORMATS
        ]
        if direction is Direction.OUT:
            for place, model in enumerate(models):
                mover.move(BlockOrders(poisoned=tuple(model.blocks[:NUM_PARKED]), model=place))
                assert model.held()[:NUM_PARKED].isnan().all()
    for model, expected in zip(models, before, strict=True):
        assert torch.equal(model.held(), expected)


def test_poison_stays_within_the_blocks_of_its_model(models: list[Hosted], mover: Mover) -> None:
    before = models[1].held()
    mover.move(BlockOrders(poisoned=tuple(models[0].blocks), model=0))
    assert models[0].held().isnan().all()
    assert torch.equal(models[1].held(), before)
