"""A device's KV memory as blocks that are copied to and from slots of host memory."""

import math
import mmap
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fabric.engine.block_addresses import BlockAddresses
from kernels.ops import Backend

Pairs = Sequence[tuple[int, int]]

# Copied at once: much enough for a disk, and little enough to stop soon.
PIECE_BYTES = 4 * 2**20


@dataclass(frozen=True, slots=True)
class BlockFormat:
    """One block: ``shape`` is ``[num_layers, 2, num_kv_heads, block_size, head_dim]``."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def block_bytes(self) -> int:
        """What one block weighs."""
        return math.prod(self.shape) * self.dtype.itemsize

    def slots_in(
        self, memory: mmap.mmap, num_slots: int, slot_bytes: int = 0, offset: int = 0
    ) -> Tensor:
        """Slots in memory, ``[num_slots, *shape]``, one every ``slot_bytes`` (0: no gaps)."""
        slot_bytes = slot_bytes or self.block_bytes
        flat = torch.frombuffer(
            memory, dtype=torch.uint8, count=num_slots * slot_bytes, offset=offset
        )
        slots = flat.view(num_slots, slot_bytes)[:, : self.block_bytes]
        return slots.view(self.dtype).view(num_slots, *self.shape)


def block_rows(blocks: Tensor) -> Tensor:
    """Blocks ``[num_blocks, *shape]`` as ``[num_blocks, row_elements]`` of the widest integers.

    The same memory, to copy blocks by, whatever their shape and dtype are.
    """
    shape = (blocks.shape[0], math.prod(blocks.shape[1:]))
    rows = torch.as_strided(blocks, shape, (blocks.stride(0), 1))
    gaps = math.gcd(blocks.stride(0) * blocks.itemsize, shape[1] * blocks.itemsize)
    fitting = [kind for kind in (torch.int64, torch.int32, torch.int16) if not gaps % kind.itemsize]
    return rows.view(fitting[0])


def bytes_of(blocks: Tensor) -> NDArray[np.uint8]:
    """The bytes of blocks in host memory, in place, ``[num_blocks, block_bytes]``."""
    return blocks.flatten(1).view(torch.uint8).numpy()


def digests(rows: NDArray[np.uint8], chosen: Iterable[int]) -> list[int]:
    """Numbers that tell the chosen blocks' bytes from others; never 0.

    CRC-32 finds what memory, disks and late copies do to a block, as fast as a disk reads; it
    is no defence against people.
    """
    return [zlib.crc32(rows[i].data) | 1 << 32 for i in chosen]


class DeviceBlocks(Protocol):
    """The blocks of one device. All but ``poison`` and ``fence`` are for copy threads.

    They are best copied ``piece_bytes`` at a time.
    """

    piece_bytes: int

    def poison(self, blocks: Sequence[int]) -> None:
        """Fill free blocks with NaN."""
        ...

    def fence(self) -> object:
        """A mark behind all that the device has been given to do; copies wait for it."""
        ...

    def pin(self, memory: Tensor) -> None:
        """Make host memory ready for copies; takes long where there is much of it."""
        ...

    def copy_out(self, pairs: Pairs, slots: Tensor, fence: object) -> None:
        """Copy (block, slot) pairs into host memory; returns when they are there."""
        ...

    def copy_in(self, pairs: Pairs, slots: Tensor, fence: object) -> None:
        """Copy (block, slot) pairs out of host memory; returns when they are on the device."""
        ...

    def digests(self, blocks: Sequence[int], fence: object) -> list[int]:
        """The digests of blocks as they are on the device."""
        ...


class CpuBlocks:
    """Blocks of a ``kv_cache`` in host memory; ``addresses`` say where in it each begins.

    ``backend`` copies on the calling thread alone and without the interpreter's lock, so that
    the iterations beside it go on.
    """

    piece_bytes = PIECE_BYTES

    def __init__(self, kv_cache: Tensor, backend: Backend, addresses: BlockAddresses) -> None:
        self._kv_cache = kv_cache
        self._backend = backend
        self._addresses = addresses

    def poison(self, blocks: Sequence[int]) -> None:
        """Fill the blocks."""
        self._kv_cache[torch.from_numpy(self._addresses.steps(blocks))] = torch.nan

    def fence(self) -> object:
        """Iterations on the host are over when they return."""
        return None

    def pin(self, memory: Tensor) -> None:
        """Nothing: any host memory will do."""

    def copy_out(self, pairs: Pairs, slots: Tensor, fence: object) -> None:
        """Copy all pairs in one call."""
        self._backend.copy_blocks(self._kv_cache, slots, self._addressed(pairs))

    def copy_in(self, pairs: Pairs, slots: Tensor, fence: object) -> None:
        """Copy all pairs in one call."""
        addressed = self._addressed(pairs).flip(1).contiguous()
        self._backend.copy_blocks(slots, self._kv_cache, addressed)

    def digests(self, blocks: Sequence[int], fence: object) -> list[int]:
        """The digests of the blocks in place."""
        return digests(bytes_of(self._kv_cache), self._addresses.steps(blocks).tolist())

    def _addressed(self, pairs: Pairs) -> Tensor:
        blocks, slots = zip(*pairs, strict=True)
        return torch.stack(
            [torch.from_numpy(self._addresses.steps(blocks)), torch.tensor(slots)], dim=1
        )
