"""A GPU's KV memory as blocks; copies run on streams of their own.

Blocks that are small, or scattered on the device, don't get a copy each: they are gathered into
staging memory on the device, which goes to as many slots as follow each other in one copy, and the
other way round. Two stagings take turns, so that one is gathered while the other is copied.

No GPU has run this yet: its order of events is tested with a model of streams.
"""

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fabric.engine.block_addresses import BlockAddresses
from fabric.engine.device_blocks import Pairs, block_rows, bytes_of, digests
from fabric.engine.pinned import Cuda
from fabric.engine.staging import Staging

logger = logging.getLogger(__name__)

POLL_S = 50e-6
# Copies of so much each reach the link's bandwidth without being put together.
LARGE_BYTES = 2**20
# One takes long enough that the host has queued the next.
STAGING_BYTES = 32 * 2**20


class CudaBlocks:
    """Blocks of a ``kv_cache`` on a GPU; ``addresses`` say where in it each begins.

    A copy waits for the fence, an event that was recorded behind the iterations which may still
    use its blocks; it is over when an event recorded behind it has passed. Host memory is pinned
    when it is first copied to or from, if it wasn't before, and stays so until the process ends.
    """

    # A transfer waits for each piece: that is little beside what the copy of one takes.
    piece_bytes = 256 * 2**20

    def __init__(
        self,
        kv_cache: Tensor,
        cuda: Cuda,
        addresses: BlockAddresses,
        staging_bytes: int = STAGING_BYTES,
    ) -> None:
        self._rows = block_rows(kv_cache)
        self._shape, self._dtype = kv_cache.shape[1:], kv_cache.dtype
        self._block_bytes = self._rows.shape[1] * self._rows.itemsize
        self._addresses = addresses
        self._cuda = cuda
        self._copies = cuda.Stream()
        self._staging = Staging(self._rows, max(1, staging_bytes // self._block_bytes), cuda)
        self._queueing = threading.Lock()
        self._pinned: set[int] = set()
        self._pinning = threading.Lock()

    def poison(self, blocks: Sequence[int]) -> None:
        """Fill the blocks, behind the iterations in flight."""
        nans = torch.full(self._shape, torch.nan, dtype=self._dtype, device=self._rows.device)
        nans = nans.flatten().view(self._rows.dtype).expand(len(blocks), -1)
        self._rows.index_copy_(0, self._steps(blocks), nans)

    def fence(self) -> object:
        """An event behind the iterations given to the device so far."""
        event = self._cuda.Event()
        event.record(self._cuda.current_stream())
        return event

    def pin(self, memory: Tensor) -> None:
        """See DeviceBlocks; where the system doesn't allow it, copies are right but slow."""
        storage = memory.untyped_storage()
        with self._pinning:
            if storage.data_ptr() in self._pinned:
                return
            self._pinned.add(storage.data_ptr())
            error = self._cuda.cudart().cudaHostRegister(storage.data_ptr(), storage.nbytes(), 0)
        if int(error):
            logger.warning(
                "%d bytes of host memory can't be pinned, CUDA error %d: copies to them are slow",
                *(storage.nbytes(), int(error)),
            )

    def copy_out(self, pairs: Pairs, slots: Tensor, fence: object) -> None:
        """Copy the pairs, and wait for the last."""
        self._copy(pairs, slots, fence, is_out=True)

    def copy_in(self, pairs: Pairs, slots: Tensor, fence: object) -> None:
        """Copy the pairs, and wait for the last."""
        self._copy(pairs, slots, fence, is_out=False)

    def digests(self, blocks: Sequence[int], fence: object) -> list[int]:
        """The digests of copies of the blocks."""
        with self._cuda.stream(self._copies):
            self._copies.wait_event(fence)
            copies = self._rows.index_select(0, self._steps(blocks)).cpu()
        return digests(bytes_of(copies), range(len(blocks)))

    def _copy(self, pairs: Pairs, slots: Tensor, fence: object, *, is_out: bool) -> None:
        self.pin(slots)
        # Slots in their order: then as many as can be follow each other.
        ordered = sorted(pairs, key=lambda pair: pair[1])
        found = list(self._runs(ordered, has_gaps=_has_gaps(slots)))
        is_large = len(pairs) * self._block_bytes >= LARGE_BYTES * len(found)
        with self._queueing:
            self._copies.wait_event(fence)
            if is_large:
                done = self._copy_runs(found, slots, is_out)
            else:
                done = self._copy_staged(ordered, slots, fence, is_out)
        while not done.query():
            time.sleep(POLL_S)

    def _copy_runs(self, found: list[tuple[int, int, int]], slots: Tensor, is_out: bool) -> Any:
        """Queue a copy for each run; returns the event behind them."""
        host, stride = block_rows(slots), self._addresses.steps_per_block
        with self._cuda.stream(self._copies):
            for step, slot, count in found:
                on_device = self._rows[step : step + (count - 1) * stride + 1 : stride]
                on_host = host[slot : slot + count]
                source, target = (on_device, on_host) if is_out else (on_host, on_device)
                target.copy_(source, non_blocking=True)
            done = self._cuda.Event()
            done.record(self._copies)
        return done

    def _copy_staged(self, pairs: Pairs, slots: Tensor, fence: object, is_out: bool) -> Any:
        """Queue copies of as much as staging memory holds; returns the event behind them."""
        host, size = block_rows(slots), self._staging.num_blocks
        copy = self._staging.copy_out if is_out else self._staging.copy_in
        done = fence
        for start in range(0, len(pairs), size):
            piece = pairs[start : start + size]
            steps = self._addresses.steps([block for block, _ in piece])
            done = copy(
                steps, host, slot_runs(piece, has_gaps=_has_gaps(slots)), self._copies, fence
            )
        return done

    def _steps(self, blocks: Sequence[int]) -> Tensor:
        return torch.from_numpy(self._addresses.steps(blocks)).to(self._rows.device)

    def _runs(self, pairs: Pairs, *, has_gaps: bool) -> Iterator[tuple[int, int, int]]:
        """What follows on both sides, as (first step, first slot, how many blocks)."""
        size = self._addresses.blocks_per_slab
        for block, slot, count in runs(pairs, has_gaps=has_gaps):
            # Blocks that follow each other lie one behind the other only within a slab.
            while count:
                part = min(count, size - block % size)
                yield self._addresses.step(block), slot, part
                block, slot, count = block + part, slot + part, count - part


def runs(pairs: Pairs, *, has_gaps: bool = False) -> list[tuple[int, int, int]]:
    """Pairs that follow each other on both sides, as (first block, first slot, how many).

    Where there are gaps between slots, each is one by itself.
    """
    found: list[tuple[int, int, int]] = []
    for block, slot in pairs:
        first, start, count = found[-1] if found else (block, slot, 0)
        if count and not has_gaps and (block, slot) == (first + count, start + count):
            found[-1] = (first, start, count + 1)
        else:
            found.append((block, slot, 1))
    return found


def slot_runs(pairs: Pairs, *, has_gaps: bool = False) -> list[tuple[int, int, int]]:
    """Pairs whose slots follow each other, as (place of the first pair, its slot, how many)."""
    return runs([(place, slot) for place, (_, slot) in enumerate(pairs)], has_gaps=has_gaps)


def _has_gaps(slots: Tensor) -> bool:
    """Whether slots are further apart than they are long: one copy of several would be torn up."""
    return not slots.is_contiguous()
