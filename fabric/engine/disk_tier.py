"""Blocks parked in a file."""

import contextlib
import fcntl
import logging
import mmap
import os
import queue
import tempfile
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fabric.core.errors import ConfigError
from fabric.engine.block_tier import (
    CopyFailed,
    check_digests,
    piece_blocks,
)
from fabric.engine.device_blocks import (
    PIECE_BYTES,
    BlockFormat,
    DeviceBlocks,
    Pairs,
    bytes_of,
    digests,
)

logger = logging.getLogger(__name__)

# What O_DIRECT asks of addresses, offsets and lengths; no disk has larger sectors.
ALIGNMENT = 4096


@dataclass(frozen=True, slots=True)
class _Bounce:
    """Aligned memory that blocks pass through on their way between device and file."""

    data: memoryview
    slots: Tensor
    rows: NDArray[np.uint8]


def disk_bytes_of(num_slots: int, block_bytes: int) -> int:
    """What so many slots take."""
    return num_slots * -(-block_bytes // ALIGNMENT) * ALIGNMENT


class DiskTier:
    """Slots of one file without a name, which ends with the last process that has it open.

    Its bytes don't go through the page cache where the filesystem has O_DIRECT. A block that is
    read must have the digest that it was written with; with ``is_checked``, once more when it is
    on the device.
    """

    max_piece_bytes = PIECE_BYTES

    def __init__(
        self,
        folder: Path,
        num_bytes: int,
        block: BlockFormat,
        num_threads: int = 1,
        *,
        is_checked: bool = False,
    ) -> None:
        """Reserve the file.

        Raises:
            ConfigError: The folder can't be written, or its disk has no room.
        """
        self._slot_bytes = disk_bytes_of(1, block.block_bytes)
        self.num_slots = num_bytes // self._slot_bytes
        self._is_checked = is_checked
        try:
            self._fd, name = tempfile.mkstemp(prefix="fabric-kv-", dir=folder)
            self._close = weakref.finalize(self, os.close, self._fd)
            os.unlink(name)
            os.posix_fallocate(self._fd, 0, max(1, self.num_slots * self._slot_bytes))
        except OSError as error:
            raise ConfigError(
                f"disk_bytes: {num_bytes} bytes can't be reserved in {folder}: {error.strerror}"
            ) from error
        self._digests = [0] * self.num_slots
        self._is_direct = _set_direct(self._fd)
        logger.info(
            "%d blocks can be parked in %s%s",
            self.num_slots,
            folder,
            "" if self._is_direct else ", through the page cache",
        )
        self._bounces: queue.SimpleQueue[_Bounce] = queue.SimpleQueue()
        bounces = [self._new_bounce(block) for _ in range(num_threads)]
        self.memory: tuple[Tensor, ...] = tuple(bounce.slots for bounce in bounces)
        for bounce in bounces:
            self._bounces.put(bounce)

    @property
    def fileno(self) -> int:
        """The file, for tests that harm it."""
        return self._fd

    def store(self, device: DeviceBlocks, pairs: Pairs, fence: object) -> None:
        """Write blocks into their slots."""
        with self._borrow() as bounce:
            staged = [(block, i) for i, (block, _) in enumerate(pairs)]
            blocks = [block for block, _ in pairs]
            before = device.digests(blocks, fence) if self._is_checked else None
            device.copy_out(staged, bounce.slots, fence)
            found = before or digests(bounce.rows, range(len(staged)))
            for first, slot, count in _runs(pairs):
                self._digests[slot : slot + count] = [0] * count
                self._write(slot, self._part(bounce, first, count))
                self._digests[slot : slot + count] = found[first : first + count]

    def load(self, device: DeviceBlocks, pairs: Pairs, fence: object) -> None:
        """Read slots into their blocks."""
        expected = [self._digests[slot] for _, slot in pairs]
        with self._borrow() as bounce:
            for first, slot, count in _runs(pairs):
                self._read(slot, self._part(bounce, first, count))
            staged = [(block, i) for i, (block, _) in enumerate(pairs)]
            found = digests(bounce.rows, range(len(staged)))
            check_digests("disk", pairs, found, expected)
            device.copy_in(staged, bounce.slots, fence)
        if self._is_checked:
            found = device.digests([block for block, _ in pairs], fence)
            check_digests("on its way from disk", pairs, found, expected)

    def close(self, leaves_parked: bool = False) -> None:
        """Give the disk's room back; a file without a name has no successor."""
        self._close()

    def _new_bounce(self, block: BlockFormat) -> _Bounce:
        num_slots = piece_blocks(block.block_bytes, PIECE_BYTES)
        memory = mmap.mmap(-1, num_slots * self._slot_bytes)
        slots = block.slots_in(memory, num_slots, slot_bytes=self._slot_bytes)
        return _Bounce(memoryview(memory), slots, bytes_of(slots))

    @contextlib.contextmanager
    def _borrow(self) -> Iterator[_Bounce]:
        bounce = self._bounces.get()
        try:
            yield bounce
        finally:
            self._bounces.put(bounce)

    def _part(self, bounce: _Bounce, first: int, count: int) -> memoryview:
        return bounce.data[first * self._slot_bytes : (first + count) * self._slot_bytes]

    def _write(self, slot: int, data: memoryview) -> None:
        start = offset = slot * self._slot_bytes
        try:
            while data:
                written = os.pwrite(self._fd, data, offset)
                data, offset = data[written:], offset + written
        except OSError as error:
            raise CopyFailed(f"disk: slot {slot} can't be written: {error.strerror}") from error
        self._forget_pages(start, offset - start)

    def _read(self, slot: int, data: memoryview) -> None:
        start = offset = slot * self._slot_bytes
        try:
            while data:
                count = os.preadv(self._fd, [data], offset)
                if not count:
                    raise CopyFailed(f"disk: the file ends {len(data)} bytes early in slot {slot}")
                data, offset = data[count:], offset + count
        except OSError as error:
            raise CopyFailed(f"disk: slot {slot} can't be read: {error.strerror}") from error
        self._forget_pages(start, offset - start)

    def _forget_pages(self, offset: int, num_bytes: int) -> None:
        if not self._is_direct:
            os.posix_fadvise(self._fd, offset, num_bytes, os.POSIX_FADV_DONTNEED)


def _set_direct(fd: int) -> bool:
    """Go past the page cache from now on, if the filesystem can."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_DIRECT)
    except OSError:
        return False
    return True


def _runs(pairs: Pairs) -> list[tuple[int, int, int]]:
    """Pairs whose slots follow each other, as (place of the first pair, its slot, how many)."""
    runs: list[tuple[int, int, int]] = []
    for i, (_, slot) in enumerate(pairs):
        if runs and slot == runs[-1][1] + runs[-1][2]:
            first, start, count = runs[-1]
            runs[-1] = (first, start, count + 1)
        else:
            runs.append((i, slot, 1))
    return runs
