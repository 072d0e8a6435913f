"""A group that knows how long its operations took."""

import time
from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

from fabric.parallel.group import Group
from fabric.parallel.traffic import Traffic

T = TypeVar("T")


class TimedGroup:
    """Another group, with the seconds that its caller spent in it; adds half a microsecond a call.

    Operations on a GPU return before they are done: of those it counts the host's time only.
    """

    def __init__(self, group: Group) -> None:
        self._group = group
        self.elapsed_s = 0.0

    @property
    def rank(self) -> int:
        """See Group."""
        return self._group.rank

    @property
    def size(self) -> int:
        """See Group."""
        return self._group.size

    @property
    def traffic(self) -> Traffic:
        """See Group."""
        return self._group.traffic

    def all_reduce(self, x: Tensor) -> None:
        """See Group."""
        self._timed(lambda: self._group.all_reduce(x))

    def all_gather(self, x: Tensor) -> Tensor:
        """See Group."""
        return self._timed(lambda: self._group.all_gather(x))

    def reduce_scatter(self, x: Tensor) -> Tensor:
        """See Group."""
        return self._timed(lambda: self._group.reduce_scatter(x))

    def broadcast(self, x: Tensor, root: int) -> None:
        """See Group."""
        self._timed(lambda: self._group.broadcast(x, root))

    def all_to_all(self, x: Tensor) -> Tensor:
        """See Group."""
        return self._timed(lambda: self._group.all_to_all(x))

    def send(self, x: Tensor, to: int) -> None:
        """See Group."""
        self._timed(lambda: self._group.send(x, to))

    def recv(self, x: Tensor, source: int) -> None:
        """See Group."""
        self._timed(lambda: self._group.recv(x, source))

    def barrier(self) -> None:
        """See Group."""
        self._timed(self._group.barrier)

    def abort(self) -> None:
        """See Group."""
        self._group.abort()

    def close(self) -> None:
        """See Group."""
        self._group.close()

    def _timed(self, operation: Callable[[], T]) -> T:
        start_s = time.perf_counter()
        try:
            return operation()
        finally:
            self.elapsed_s += time.perf_counter() - start_s
