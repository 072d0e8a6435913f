"""A device's slabs in one run of memory, in which blocks of every model's size can lie."""

import contextlib
import mmap
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from fabric.core.errors import ConfigError
from fabric.engine.device_blocks import BlockFormat
from fabric.engine.memory_plan import PAGE_BYTES, STEP_BYTES, rounded_up

# The system's large pages. Smaller slabs would share them, and not give back all that is theirs.
_LARGE_PAGE_BYTES = 2 * 2**20
# As Linux has it on x86 and Arm; Python 3.11 has no name for it.
_MAP_NORESERVE = 0x4000


class Arena:
    """The KV memory of all models on one device, ``num_slabs`` of ``slab_bytes``.

    In host memory, slabs that nobody has written to take none of it. On a GPU all of it is taken
    at once, and stays so. Behind the slabs is room for a block that no model ever has: batches of
    a fixed size are filled up with sequences that use it.
    """

    def __init__(
        self,
        num_slabs: int,
        slab_bytes: int,
        device: torch.device | None = None,
        padding_bytes: int = 0,
    ) -> None:
        """Reserve addresses for the slabs.

        Args:
            num_slabs: How many.
            slab_bytes: Whole pages.
            device: Where; None: in host memory.
            padding_bytes: The room behind them.

        Raises:
            ConfigError: A GPU hasn't got so much memory left.
        """
        assert slab_bytes % PAGE_BYTES == 0, f"slabs of {slab_bytes} bytes are not whole pages"
        self._slab_bytes = slab_bytes
        self._padding_byte = num_slabs * slab_bytes
        self._pages: mmap.mmap | None = None
        num_bytes = self._padding_byte + rounded_up(padding_bytes, PAGE_BYTES)
        if device is not None and device.type != "cpu":
            self._memory = _zeros(num_bytes, device)
            return
        self._pages = _reserve(num_bytes)
        if slab_bytes >= _LARGE_PAGE_BYTES:
            with contextlib.suppress(OSError):  # the system has none
                self._pages.madvise(mmap.MADV_HUGEPAGE)
        self._memory = torch.frombuffer(self._pages, dtype=torch.uint8)

    @property
    def padding(self) -> int:
        """Where the block begins that no model has, in steps; its bytes are finite numbers."""
        return self._padding_byte // STEP_BYTES

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


def _zeros(num_bytes: int, device: torch.device) -> Tensor:
    try:
        return torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    except torch.OutOfMemoryError as error:
        free_bytes, all_bytes = torch.cuda.mem_get_info(device)
        raise ConfigError(
            f"KV memory of {num_bytes} bytes: {device} has {free_bytes} of {all_bytes} bytes left"
        ) from error


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
