"""Blocks parked in host memory."""

import mmap
from typing import Protocol

import numpy as np
from torch import Tensor

from fabric.engine.block_tier import UNBOUNDED, check_digests
from fabric.engine.device_blocks import BlockFormat, DeviceBlocks, Pairs, bytes_of, digests

PAGE_BYTES = 4096
DIGEST_BYTES = 8


class Arena(Protocol):
    """Host memory in one piece."""

    @property
    def memory(self) -> mmap.mmap:
        """The bytes."""
        ...

    def close(self, leaves_parked: bool = False) -> None:
        """Give it back, or leave it to the next owner if it can."""
        ...


class OwnArena:
    """Memory of this process, which ends with it."""

    def __init__(self, num_bytes: int) -> None:
        self.memory = mmap.mmap(-1, num_bytes)

    def close(self, leaves_parked: bool = False) -> None:
        """Nothing: the memory goes with the last tensor over it."""


def host_bytes_of(num_slots: int, block_bytes: int) -> int:
    """What so many slots take, with the table of their digests before them."""
    return _table_bytes(num_slots) + num_slots * block_bytes


class HostTier:
    """Slots in an arena, behind a table of their digests that whoever has the arena can check.

    The table is kept with ``has_digests``, 0 where a slot holds no whole block; with
    ``is_checked`` a block must have its digest again once it is back on the device.
    """

    max_piece_bytes = UNBOUNDED

    def __init__(
        self,
        arena: Arena,
        block: BlockFormat,
        *,
        has_digests: bool = False,
        is_checked: bool = False,
    ) -> None:
        num_bytes = len(arena.memory)
        self.num_slots = num_bytes // (block.block_bytes + DIGEST_BYTES)
        while host_bytes_of(self.num_slots, block.block_bytes) > num_bytes:
            self.num_slots -= 1
        self._arena = arena
        self._table = np.frombuffer(arena.memory, np.uint64, self.num_slots)
        self._slots = block.slots_in(
            arena.memory, self.num_slots, offset=_table_bytes(self.num_slots)
        )
        self._bytes = bytes_of(self._slots)
        self._has_digests = has_digests or is_checked
        self._is_checked = is_checked

    @property
    def memory(self) -> tuple[Tensor, ...]:
        """The slots."""
        return (self._slots,)

    def store(self, device: DeviceBlocks, pairs: Pairs, fence: object) -> None:
        """Copy blocks into their slots."""
        if not self._has_digests:
            device.copy_out(pairs, self._slots, fence)
            return
        blocks, slots = (list(side) for side in zip(*pairs, strict=True))
        self._table[slots] = 0
        before = device.digests(blocks, fence) if self._is_checked else None
        device.copy_out(pairs, self._slots, fence)
        self._table[slots] = before or digests(self._bytes, slots)

    def load(self, device: DeviceBlocks, pairs: Pairs, fence: object) -> None:
        """Copy slots into their blocks."""
        device.copy_in(pairs, self._slots, fence)
        if self._is_checked:
            blocks, slots = (list(side) for side in zip(*pairs, strict=True))
            found = device.digests(blocks, fence)
            check_digests("host", pairs, found, self._table[slots].tolist())

    def is_intact(self, slot: int) -> bool:
        """Whether the slot holds a whole block, as its digest says."""
        return self._table[slot] in digests(self._bytes, [slot])

    def close(self, leaves_parked: bool = False) -> None:
        """Give the arena back."""
        self._arena.close(leaves_parked)


def _table_bytes(num_slots: int) -> int:
    return -(-num_slots * DIGEST_BYTES // PAGE_BYTES) * PAGE_BYTES
