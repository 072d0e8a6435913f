"""Memory on a GPU in which blocks that lie apart are put together, so that one copy takes them."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fabric.engine.pinned import Cuda

# One is gathered or scattered while the other is copied.
_NUM_STAGINGS = 2

Runs = list[tuple[int, int, int]]


class Staging:
    """Room for ``num_blocks`` blocks, twice, and the stream that moves blocks within the device.

    Calls only queue; they come from one thread at a time.
    """

    def __init__(self, rows: Tensor, num_blocks: int, cuda: Cuda) -> None:
        """Take no memory yet.

        Args:
            rows: ``[num_steps, row_elements]``, the device's blocks by where they begin.
            num_blocks: As many at most are copied at once.
            cuda: ``torch.cuda``, or what stands for it.
        """
        self.num_blocks = num_blocks
        self._rows = rows
        self._cuda = cuda
        self._moves = cuda.Stream()
        self._memory: Tensor | None = None
        # Behind the last use of each.
        self._used: list[Any] = [None] * _NUM_STAGINGS
        self._next = 0

    def copy_out(
        self, steps: NDArray[np.int64], host: Tensor, runs: Runs, copies: Any, fence: Any
    ) -> Any:
        """Gather blocks, then copy them to the host.

        Args:
            steps: Where the blocks begin; at most ``num_blocks``.
            host: ``[num_slots, row_elements]``, pinned.
            runs: (First of the blocks, its slot, how many) for slots that follow each other.
            copies: The stream of the copies.
            fence: What gathering waits for.

        Returns:
            The event behind the copies.
        """
        number, memory = self._take(len(steps))
        with self._cuda.stream(self._moves):
            self._begin(self._moves, number, fence)
            torch.index_select(self._rows, 0, self._on_device(steps), out=memory)
            gathered = self._cuda.Event()
            gathered.record(self._moves)
        with self._cuda.stream(copies):
            copies.wait_event(gathered)
            for first, slot, count in runs:
                host[slot : slot + count].copy_(memory[first : first + count], non_blocking=True)
            return self._end(copies, number)

    def copy_in(
        self, steps: NDArray[np.int64], host: Tensor, runs: Runs, copies: Any, fence: Any
    ) -> Any:
        """Copy blocks from the host, then scatter them; see :meth:`copy_out`.

        Returns:
            The event behind all of it.
        """
        number, memory = self._take(len(steps))
        with self._cuda.stream(copies):
            self._begin(copies, number, fence)
            for first, slot, count in runs:
                memory[first : first + count].copy_(host[slot : slot + count], non_blocking=True)
            copied = self._cuda.Event()
            copied.record(copies)
        with self._cuda.stream(self._moves):
            self._moves.wait_event(copied)
            self._rows.index_copy_(0, self._on_device(steps), memory)
            return self._end(self._moves, number)

    def _take(self, num_blocks: int) -> tuple[int, Tensor]:
        if self._memory is None:
            shape = (_NUM_STAGINGS, self.num_blocks, self._rows.shape[1])
            self._memory = self._rows.new_empty(shape)
            # It may have been somebody's a moment ago.
            taken = self._cuda.Event()
            taken.record(self._cuda.current_stream())
            self._used = [taken] * _NUM_STAGINGS
        number, self._next = self._next, (self._next + 1) % _NUM_STAGINGS
        return number, self._memory[number, :num_blocks]

    def _begin(self, stream: Any, number: int, fence: Any) -> None:
        stream.wait_event(fence)
        stream.wait_event(self._used[number])

    def _end(self, stream: Any, number: int) -> Any:
        self._used[number] = self._cuda.Event()
        self._used[number].record(stream)
        return self._used[number]

    def _on_device(self, steps: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(steps).to(self._rows.device)
