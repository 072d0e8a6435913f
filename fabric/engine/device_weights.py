"""Device memory for weights that goes back to the system at once when they leave."""

import contextlib
import mmap

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fabric.core.errors import SourceError


class CpuWeights:
    """Private memory of a worker on a CPU device, in huge pages where the system has them."""

    def __init__(self, num_bytes: int) -> None:
        """Reserve the memory; pages are taken as they are written.

        Raises:
            SourceError: It can't be had.
        """
        try:
            self._memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise SourceError(f"{num_bytes} bytes of device memory: {error}") from error
        with contextlib.suppress(OSError):  # a kernel without huge pages
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        # It keeps the memory mapped as long as there are views of it.
        self.tensor: Tensor = torch.frombuffer(self._memory, dtype=torch.uint8)
        self._bytes: npt.NDArray[np.uint8] = self.tensor.numpy()

    @property
    def view(self) -> memoryview:
        """The bytes, to read a file into."""
        return self._bytes.data

    def write(self, offset: int, data: memoryview) -> None:
        """Copy bytes to their place, other threads running meanwhile."""
        self._bytes[offset : offset + len(data)] = np.frombuffer(data, dtype=np.uint8)

    def free(self) -> None:
        """Give the pages back; views that are left read zeros."""
        self._memory.madvise(mmap.MADV_DONTNEED)
