"""A GPU's KV memory as blocks; copies run on a stream of their own.

No GPU has run this yet: its order of events is tested with a model of streams.
"""

import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor

from fabric.engine.block_addresses import BlockAddresses
from fabric.engine.block_tier import CopyFailed
from fabric.engine.device_blocks import Pairs, bytes_of, digests

POLL_S = 50e-6


class Cuda(Protocol):
    """What is used of ``torch.cuda``."""

    def Event(self) -> Any:  # noqa: N802
        """A mark in a stream."""
        ...

    def Stream(self) -> Any:  # noqa: N802
        """A stream of the current device."""
        ...

    def current_stream(self) -> Any:
        """The stream that iterations are given to."""
        ...

    def stream(self, stream: Any) -> AbstractContextManager[object]:
        """Give work to this stream."""
        ...

    def cudart(self) -> Any:
        """The runtime library."""
        ...


class CudaBlocks:
    """Blocks of a ``kv_cache`` on a GPU; ``addresses`` say where in it each begins.

    A copy waits for the fence, an event that was recorded behind the iterations which may still
    use its blocks; it is over when an event recorded behind it has passed. Host memory is pinned
    when it is first copied to or from, and stays so until the process ends.
    """

    def __init__(self, kv_cache: Tensor, cuda: Cuda, addresses: BlockAddresses) -> None:
        self._kv_cache = kv_cache
        self._addresses = addresses
        self._cuda = cuda
        self._copies = cuda.Stream()
        self._pinned: set[int] = set()
        self._pinning = threading.Lock()

    def poison(self, blocks: Sequence[int]) -> None:
        """Fill the blocks, behind the iterations in flight."""
        self._kv_cache[self._steps(blocks)] = torch.nan

    def fence(self) -> object:
        """An event behind the iterations given to the device so far."""
        event = self._cuda.Event()
        event.record(self._cuda.current_stream())
        return event

    def copy_out(self, pairs: Pairs, slots: Tensor, fence: object) -> None:
        """Copy the pairs' runs, and wait for the last."""
        self._copy(pairs, slots, fence, is_out=True)

    def copy_in(self, pairs: Pairs, slots: Tensor, fence: object) -> None:
        """Copy the pairs' runs, and wait for the last."""
        self._copy(pairs, slots, fence, is_out=False)

    def digests(self, blocks: Sequence[int], fence: object) -> list[int]:
        """The digests of copies of the blocks."""
        with self._cuda.stream(self._copies):
            self._copies.wait_event(fence)
            copies = self._kv_cache[self._steps(blocks)].cpu()
        return digests(bytes_of(copies), range(len(blocks)))

    def _copy(self, pairs: Pairs, slots: Tensor, fence: object, *, is_out: bool) -> None:
        self._pin(slots)
        done = self._cuda.Event()
        with self._cuda.stream(self._copies):
            self._copies.wait_event(fence)
            for step, slot, count in self._runs(pairs):
                stride = self._addresses.steps_per_block
                on_device = self._kv_cache[step : step + count * stride : stride]
                on_host = slots[slot : slot + count]
                source, target = (on_device, on_host) if is_out else (on_host, on_device)
                target.copy_(source, non_blocking=True)
            done.record(self._copies)
        while not done.query():
            time.sleep(POLL_S)

    def _steps(self, blocks: Sequence[int]) -> Tensor:
        return torch.from_numpy(self._addresses.steps(blocks)).to(self._kv_cache.device)

    def _runs(self, pairs: Pairs) -> list[tuple[int, int, int]]:
        """What follows on both sides, as (first step, first slot, how many blocks)."""
        size = self._addresses.blocks_per_slab
        found = []
        for block, slot, count in runs(pairs):
            # Blocks that follow each other lie one behind the other only within a slab.
            while count:
                part = min(count, size - block % size)
                found.append((self._addresses.step(block), slot, part))
                block, slot, count = block + part, slot + part, count - part
        return found

    def _pin(self, slots: Tensor) -> None:
        storage = slots.untyped_storage()
        with self._pinning:
            if storage.data_ptr() in self._pinned:
                return
            error = self._cuda.cudart().cudaHostRegister(storage.data_ptr(), storage.nbytes(), 0)
            if int(error):
                raise CopyFailed(f"host memory can't be pinned: CUDA error {int(error)}")
            self._pinned.add(storage.data_ptr())


def runs(pairs: Pairs) -> list[tuple[int, int, int]]:
    """Pairs that follow each other on both sides, as (first block, first slot, how many)."""
    found: list[tuple[int, int, int]] = []
    for block, slot in pairs:
        if found and (block, slot) == (found[-1][0] + found[-1][2], found[-1][1] + found[-1][2]):
            found[-1] = (*found[-1][:2], found[-1][2] + 1)
        else:
            found.append((block, slot, 1))
    return found
