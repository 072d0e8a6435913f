"""What tests of the mover share: a cache of random blocks, a mover over it, and its results."""

import queue
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fabric.engine.block_addresses import BlockAddresses
from fabric.engine.block_tier import BlockTier
from fabric.engine.device_blocks import BlockFormat, CpuBlocks, Pairs, bytes_of
from fabric.engine.mover import ModelBlocks, Mover
from fabric.engine.settings import ParkingSettings
from fabric.engine.tiers import open_tiers
from fabric.kv.transfer import BlockOrders, Direction, Tier, Transfer, TransferResult
from kernels.dispatch import select_backend

SHAPE = (3, 2, 2, 4, 8)
NUM_BLOCKS = 24
TIMEOUT_S = 10.0


def block_format(dtype: torch.dtype = torch.float32) -> BlockFormat:
    return BlockFormat(SHAPE, dtype)


def random_cache(dtype: torch.dtype = torch.float32, num_blocks: int = NUM_BLOCKS) -> Tensor:
    return torch.randn((num_blocks, *SHAPE), generator=torch.Generator().manual_seed(0)).to(dtype)


@dataclass
class Moving:
    """A mover over a cache, and what it has reported."""

    cache: Tensor
    mover: Mover
    tiers: Mapping[Tier, BlockTier]
    results: "queue.SimpleQueue[TransferResult]"

    def begin(
        self, number: int, direction: Direction, tier: Tier, pairs: Sequence[tuple[int, int]]
    ) -> None:
        self.mover.move(BlockOrders((), (Transfer(number, direction, tier, tuple(pairs)),)))

    def wait(self) -> TransferResult:
        return self.results.get(timeout=TIMEOUT_S)

    def run(
        self, number: int, direction: Direction, tier: Tier, pairs: Sequence[tuple[int, int]]
    ) -> TransferResult:
        self.begin(number, direction, tier, pairs)
        return self.wait()

    def close(self) -> None:
        self.mover.close()
        for tier in self.tiers.values():
            tier.close()


class FaultyBlocks(CpuBlocks):
    """Blocks of which a byte is lost on the way in."""

    def copy_in(self, pairs: Pairs, slots: Tensor, fence: object) -> None:
        super().copy_in(pairs, slots, fence)
        bytes_of(self._kv_cache)[pairs[-1][0], 5] ^= 1


def start_moving(
    settings: ParkingSettings, cache: Tensor, blocks: type[CpuBlocks] = CpuBlocks
) -> Moving:
    tiers = open_tiers(settings, block := block_format(cache.dtype))
    results: queue.SimpleQueue[TransferResult] = queue.SimpleQueue()
    device = blocks(cache, select_backend("cpu", None, 1), BlockAddresses.dense())
    mover = Mover([ModelBlocks(device, tiers, block.block_bytes)], settings, results.put)
    return Moving(cache, mover, tiers, results)
