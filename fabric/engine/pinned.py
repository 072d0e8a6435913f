"""Pinned host memory on its way to a GPU: written here, copied by a stream, used again."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor


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

    def empty_cache(self) -> None:
        """Give memory that no tensor has back to the device."""
        ...


def pinned_bytes(num_bytes: int) -> Tensor:
    """``[num_bytes]`` uint8 of host memory that a GPU copies from by itself."""
    return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)


class PinnedRing:
    """A few pieces of pinned memory that take turns; a piece waits for the copy it was last in.

    Args:
        num_pieces: So many copies may be under way before :meth:`send` waits for the oldest.
        piece_bytes: The longest copy.
        cuda: ``torch.cuda``, or what stands for it.
        allocate: Makes host memory of so many bytes.
    """

    def __init__(
        self,
        num_pieces: int,
        piece_bytes: int,
        cuda: Cuda,
        allocate: Callable[[int], Tensor] = pinned_bytes,
    ) -> None:
        self.piece_bytes = piece_bytes
        self._cuda = cuda
        self._pieces = list(allocate(num_pieces * piece_bytes).view(num_pieces, piece_bytes))
        self._sent: list[Any] = [None] * num_pieces
        self._next = 0

    def send(self, target: Tensor, write: Callable[[memoryview], None], stream: Any) -> None:
        """Have bytes written to a piece, and copied to the device behind what ``stream`` has to do.

        Args:
            target: ``[num_bytes]`` uint8 on the device; at most ``piece_bytes``.
            write: Fills the memory that it gets; an error leaves the device as it was.
            stream: The copy's stream.
        """
        number, num_bytes = self._next, len(target)
        if self._sent[number] is not None:
            self._sent[number].synchronize()
        piece = self._pieces[number][:num_bytes]
        write(piece.numpy().data)
        with self._cuda.stream(stream):
            target.copy_(piece, non_blocking=True)
            done = self._cuda.Event()
            done.record(stream)
        self._sent[number] = done
        self._next = (number + 1) % len(self._pieces)
