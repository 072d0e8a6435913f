"""Reads of memory between an engine's steps, so that both meet the same moments of a machine."""

import ctypes
import mmap

MEMORY_BYTES = 2**30
READ_BYTES = 2**28  # at once: some milliseconds, and many times the last-level cache


class PairedReads:
    """Reads one part of a run of memory after the other, as a probe of bandwidth does."""

    def __init__(self, library: str, pattern: str, num_threads: int) -> None:
        """Take the memory.

        Args:
            library: The probe's, see roofline.cpp.
            pattern: The name of how it reads.
            num_threads: That read together.
        """
        self._num_bytes, self._total_s = 0, 0.0
        self._read_s = ctypes.CDLL(library).read_memory_s
        self._read_s.restype = ctypes.c_double
        self._pattern, self._num_threads = pattern.encode(), num_threads
        self._memory = mmap.mmap(-1, MEMORY_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._memory.madvise(mmap.MADV_HUGEPAGE)
        for start in range(0, MEMORY_BYTES, mmap.PAGESIZE):
            self._memory[start] = 1
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))

    @property
    def bytes_per_s(self) -> float:
        """Of all reads."""
        return self._num_bytes / self._total_s

    def read(self) -> None:
        """Read the next part."""
        place = ctypes.c_void_p(self._address + self._num_bytes % MEMORY_BYTES)
        size = ctypes.c_size_t(READ_BYTES)
        took_s: float = self._read_s(self._num_threads, self._pattern, place, size)
        assert took_s > 0, f"the probe has no pattern {self._pattern!r}"
        self._num_bytes += READ_BYTES
        self._total_s += took_s
