"""Device memory for weights: written piece by piece, given back to the system when they leave."""

import contextlib
import mmap
from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fabric.core.errors import SourceError
from fabric.engine.pinned import Cuda, PinnedRing, pinned_bytes

# The longest write. So many can be on their way while others are read from a disk.
PIECE_BYTES = 4 * 2**20
_NUM_PIECES = 8

Read = Callable[[memoryview], None]


class DeviceWeights(Protocol):
    """Memory of a device that a thread writes while others run iterations."""

    tensor: Tensor

    def write(self, offset: int, data: memoryview) -> None:
        """Copy at most PIECE_BYTES to their place."""
        ...

    def fill(self, start: int, end: int, read: Read) -> None:
        """Have at most PIECE_BYTES written by ``read``, which gets memory for them."""
        ...

    def arrived(self) -> Callable[[], None]:
        """What a thread calls before it reads what has been written so far."""
        ...

    def settle(self) -> None:
        """Return when all that was written is on the device."""
        ...

    def free(self) -> None:
        """Give the memory back; nobody may read it any more."""
        ...


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

    def write(self, offset: int, data: memoryview) -> None:
        """See DeviceWeights; other threads run meanwhile."""
        self._bytes[offset : offset + len(data)] = np.frombuffer(data, dtype=np.uint8)

    def fill(self, start: int, end: int, read: Read) -> None:
        """See DeviceWeights; they are written in place."""
        read(self._bytes[start:end].data)

    def arrived(self) -> Callable[[], None]:
        """Nothing: what is written is there."""
        return _nothing

    def settle(self) -> None:
        """Do nothing."""

    def free(self) -> None:
        """Give the pages back; views that are left read zeros."""
        self._memory.madvise(mmap.MADV_DONTNEED)


class CudaWeights:
    """Memory of a GPU, written from pinned memory by a stream of its own."""

    def __init__(
        self,
        num_bytes: int,
        device: torch.device,
        cuda: Cuda = torch.cuda,
        allocate: Callable[[int], Tensor] = pinned_bytes,
    ) -> None:
        """Take the memory, on the thread that runs iterations.

        Raises:
            SourceError: The GPU hasn't got so much.
        """
        try:
            self.tensor: Tensor = torch.empty(num_bytes, dtype=torch.uint8, device=device)
        except torch.OutOfMemoryError as error:
            raise SourceError(f"{num_bytes} bytes of device memory: {error}") from error
        self._cuda = cuda
        self._allocate = allocate
        self._ring: PinnedRing | None = None
        # Iterations before this may still read what was in the memory.
        before = cuda.Event()
        before.record(cuda.current_stream())
        self._copies = cuda.Stream()
        self._copies.wait_event(before)

    def write(self, offset: int, data: memoryview) -> None:
        """See DeviceWeights."""

        def read(target: memoryview) -> None:
            np.frombuffer(target, np.uint8)[:] = np.frombuffer(data, np.uint8)

        self.fill(offset, offset + len(data), read)

    def fill(self, start: int, end: int, read: Read) -> None:
        """See DeviceWeights; returns while the bytes are on their way."""
        if self._ring is None:
            self._ring = PinnedRing(_NUM_PIECES, PIECE_BYTES, self._cuda, self._allocate)
        self._ring.send(self.tensor[start:end], read, self._copies)

    def arrived(self) -> Callable[[], None]:
        """Makes the calling thread's current stream wait for the copies queued so far."""
        cuda, event = self._cuda, self._cuda.Event()
        event.record(self._copies)
        return lambda: cuda.current_stream().wait_event(event)

    def settle(self) -> None:
        """Wait for the stream, and give the pinned memory back."""
        self._copies.synchronize()
        self._ring = None

    def free(self) -> None:
        """Give the memory back to the GPU, behind all that it has to do."""
        self.tensor = self.tensor.new_empty(0)
        self._cuda.empty_cache()


def _nothing() -> None:
    pass
