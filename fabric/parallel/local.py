"""Ranks that are threads of one process, for tests."""

import threading
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

import torch
from torch import Tensor

from fabric.core.errors import GroupAborted, GroupError, GroupTimeout
from fabric.parallel.operands import (
    check_parts,
    check_peer,
    check_root,
    check_sum,
    check_tensor,
    ordered_sum,
)
from fabric.parallel.traffic import Traffic

_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class _Offer:
    call: tuple[object, ...]
    tensor: Tensor | None


class _Table:
    """Where the ranks lay out what they offer; nobody goes on before all have."""

    def __init__(self, size: int, timeout_s: float) -> None:
        self.size = size
        self.timeout_s = timeout_s
        self.mail: dict[tuple[int, int], SimpleQueue[Tensor]] = {
            (source, to): SimpleQueue() for source in range(size) for to in range(size)
        }
        self.is_aborted = threading.Event()
        self._barrier = threading.Barrier(size, timeout=timeout_s)
        self._offers: list[_Offer | None] = [None] * size

    def exchange(self, rank: int, offer: _Offer) -> list[_Offer]:
        """Everybody's offers, in the order of the ranks."""
        self._offers[rank] = offer
        self._meet()
        offers = [other for other in self._offers if other is not None]
        # Before anybody offers again.
        self._meet()
        return offers

    def abort(self) -> None:
        """Wake whoever waits."""
        self.is_aborted.set()
        self._barrier.abort()

    def _meet(self) -> None:
        try:
            self._barrier.wait()
        except threading.BrokenBarrierError:
            if self.is_aborted.is_set():
                raise GroupAborted("the group was aborted") from None
            raise GroupTimeout(f"a rank didn't come within {self.timeout_s} s") from None


@dataclass(frozen=True, slots=True)
class LocalGroup:
    """One of several ranks in a process, each used by a thread of its own."""

    rank: int
    _table: _Table
    traffic: Traffic = field(default_factory=Traffic)

    @property
    def size(self) -> int:
        """How many ranks there are."""
        return self._table.size

    def all_reduce(self, x: Tensor) -> None:
        """See Group."""
        check_sum(x)
        x.copy_(ordered_sum(self._exchange("all_reduce", x)))

    def all_gather(self, x: Tensor) -> Tensor:
        """See Group."""
        check_parts(x, 1)
        return torch.cat(self._exchange("all_gather", x))

    def reduce_scatter(self, x: Tensor) -> Tensor:
        """See Group."""
        check_sum(x)
        check_parts(x, self.size)
        return ordered_sum(self._parts(self._exchange("reduce_scatter", x)))

    def broadcast(self, x: Tensor, root: int) -> None:
        """See Group."""
        check_tensor(x)
        check_root(root, self.size)
        x.copy_(self._exchange("broadcast", x, root)[root])

    def all_to_all(self, x: Tensor) -> Tensor:
        """See Group."""
        check_parts(x, self.size)
        return torch.cat(self._parts(self._exchange("all_to_all", x)))

    def send(self, x: Tensor, to: int) -> None:
        """See Group."""
        check_tensor(x)
        check_peer(to, self.rank, self.size)
        self.traffic.count("send", x)
        self._table.mail[self.rank, to].put(x.clone())

    def recv(self, x: Tensor, source: int) -> None:
        """See Group."""
        check_tensor(x)
        check_peer(source, self.rank, self.size)
        self.traffic.count("recv", x)
        x.copy_(self._take(self._table.mail[source, self.rank]))

    def barrier(self) -> None:
        """See Group."""
        self.traffic.count("barrier")
        self._table.exchange(self.rank, _Offer(("barrier",), None))

    def abort(self) -> None:
        """See Group."""
        self._table.abort()

    def close(self) -> None:
        """Do nothing: threads share what there is."""

    def _exchange(self, operation: str, x: Tensor, root: int = 0) -> list[Tensor]:
        self.traffic.count(operation, x)
        call = (operation, tuple(x.shape), x.dtype, root)
        offers = self._table.exchange(self.rank, _Offer(call, x.clone()))
        for rank, offer in enumerate(offers):
            if offer.call != call:
                raise GroupError(f"rank {rank} calls {offer.call}, rank {self.rank} calls {call}")
        return [offer.tensor for offer in offers if offer.tensor is not None]

    def _parts(self, tensors: list[Tensor]) -> list[Tensor]:
        return [tensor.chunk(self.size)[self.rank] for tensor in tensors]

    def _take(self, mail: SimpleQueue[Tensor]) -> Tensor:
        waited_s = 0.0
        while waited_s < self._table.timeout_s:
            try:
                return mail.get(timeout=_POLL_S)
            except Empty:
                waited_s += _POLL_S
            if self._table.is_aborted.is_set():
                raise GroupAborted("the group was aborted")
        raise GroupTimeout(f"nothing was sent within {self._table.timeout_s} s")


def local_groups(size: int, timeout_s: float = 30.0) -> list[LocalGroup]:
    """All ranks of a group of threads."""
    table = _Table(size, timeout_s)
    return [LocalGroup(rank, table) for rank in range(size)]
