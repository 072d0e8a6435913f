"""A device's slabs in one run of memory, in which blocks of every model's size can lie."""

import contextlib
import mmap
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from fabric.engine.device_blocks import BlockFormat
from fabric.engine.memory_plan import PAGE_BYTES, STEP_BYTES

# The system's large pages. Smaller slabs would share them, and not give back all that is theirs.
_LARGE_PAGE_BYTES = 2 * 2**20
# As Linux has it on x86 and Arm; Python 3.11 has no name for it.
_MAP_NORESERVE = 0x4000


class Arena:
    """The KV memory of all models on one device, ``num_slabs`` of ``slab_bytes``.

    In host memory, slabs that nobody has written to take none of it. On a GPU all of it is taken
    at once, and stays so.
    """

    def __init__(self, num_slabs: int, slab_bytes: int, device: str = "cpu") -> None:
        """Reserve addresses for the slabs; ``slab_bytes`` are whole pages."""
        assert slab_bytes % PAGE_BYTES == 0, f"slabs of {slab_bytes} bytes are not whole pages"
        self._slab_bytes = slab_bytes
        self._pages: mmap.mmap | None = None
        if device != "cpu":
            self._memory = torch.zeros(num_slabs * slab_bytes, dtype=torch.uint8, device=device)
            return
        self._pages = _reserve(num_slabs * slab_bytes)
        if slab_bytes >= _LARGE_PAGE_BYTES:
            with contextlib.suppress(OSError):  # the system has none
                self._pages.madvise(mmap.MADV_HUGEPAGE)
        self._memory = torch.frombuffer(self._pages, dtype=torch.uint8)

    def view(self, block: BlockFormat) -> Tensor:
        """A ``kv_cache`` whose block ``k`` is whatever begins at byte ``k * STEP_BYTES``.

        Its blocks overlap: it is for those who index it with BlockAddresses.

        Returns:
            ``[num_steps, *block.shape]``, where a last block still fits.
        """
        num_steps = (len(self._memory) - block.block_bytes) // STEP_BYTES + 1
        inner = torch.empty(block.shape, device="meta").stride()
        strides = (STEP_BYTES // block.dtype.itemsize, *inner)
        return torch.as_strided(self._memory.view(block.dtype), (num_steps, *block.shape), strides)

    def punch(self, slabs: Iterable[int]) -> None:
        """Give the memory of slabs back to the system; they can be used again, and hold zeros."""
        if self._pages is None:
            return
        for first, count in _runs(sorted(slabs)):
            self._pages.madvise(
                mmap.MADV_DONTNEED, first * self._slab_bytes, count * self._slab_bytes
            )


def _reserve(num_bytes: int) -> mmap.mmap:
    # Private, since memory that could be shared is not given back page by page.
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    return mmap.mmap(-1, num_bytes, flags=flags)


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Ascending numbers that follow each other, as (first, how many)."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and number == sum(runs[-1]):
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((number, 1))
    return runs
