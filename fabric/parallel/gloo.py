"""Ranks on several hosts that talk over TCP, by torch's gloo."""

import threading
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fabric.core.errors import GroupAborted, GroupError, GroupTimeout
from fabric.parallel.operands import (
    check_parts,
    check_peer,
    check_root,
    check_sum,
    check_tensor,
    gathered_shape,
    ordered_sum,
)
from fabric.parallel.peers import Peers
from fabric.parallel.rendezvous import Rendezvous
from fabric.parallel.traffic import Traffic

# Between two looks at the peers while an operation takes its time.
_SLICE = timedelta(seconds=0.1)
_LINK_POLL_S = 0.02
# How long the rendezvous may take to name the rank behind a broken connection.
_NAMING_S = 2.0
# Gloo's own limit tears the connections down, and ranks may idle for long: Peers notices first.
_NEVER = timedelta(days=1)
# Up to here one exchange is faster than two of fewer bytes.
_ONE_PHASE_BYTES = 64 * 1024


class GlooGroup:
    """One rank of a group over TCP.

    Gloo's own sums of more than two depend on its algorithm: ours gather, or scatter and gather,
    and add in the order of the ranks.
    """

    def __init__(self, peers: Peers, rank: int, timeout_s: float | None = None) -> None:
        """Form the group; returns when all its ranks have.

        Args:
            peers: The ranks; each must be a member of the rendezvous already.
            rank: This process's.
            timeout_s: Longest wait of one operation for ranks that are alive; None is for ever.

        Raises:
            GroupError: Not all ranks came.
        """
        self.rank = rank
        self.size = peers.size
        self.traffic = Traffic()
        self._peers = peers
        self._timeout_s = timeout_s
        self._is_over = False
        self._work: dist.Work | None = None
        # Of dist.ProcessGroupGloo, whose collectives torch's stubs leave out.
        self._links: dict[tuple[int, int], Any] = {}
        self._ranks = self._connect("all", rank, self.size)

    def all_reduce(self, x: Tensor) -> None:
        """See Group."""
        check_sum(x)
        self.traffic.count("all_reduce", x)
        if self.size == 2:
            # The sum of two numbers has but one order.
            self._check_open()
            self._finish(self._ranks.allreduce([x]))
            return
        if x.nbytes <= _ONE_PHASE_BYTES:
            x.copy_(ordered_sum(self._gather(x.view(1, -1)).unbind()).view_as(x))
            return
        # Parts of equal size: the last is filled up.
        parts = torch.nn.functional.pad(x.view(-1), (0, -x.numel() % self.size))
        total = ordered_sum(self._swap(parts).chunk(self.size))
        x.copy_(self._gather(total)[: x.numel()].view_as(x))

    def all_gather(self, x: Tensor) -> Tensor:
        """See Group."""
        check_parts(x, 1)
        self.traffic.count("all_gather", x)
        return self._gather(x)

    def reduce_scatter(self, x: Tensor) -> Tensor:
        """See Group."""
        check_sum(x)
        check_parts(x, self.size)
        self.traffic.count("reduce_scatter", x)
        return ordered_sum(self._swap(x).chunk(self.size))

    def broadcast(self, x: Tensor, root: int) -> None:
        """See Group."""
        check_tensor(x)
        check_root(root, self.size)
        self.traffic.count("broadcast", x)
        self._broadcast(self._ranks, x, root)

    def all_to_all(self, x: Tensor) -> Tensor:
        """See Group."""
        check_parts(x, self.size)
        self.traffic.count("all_to_all", x)
        return self._swap(x)

    def send(self, x: Tensor, to: int) -> None:
        """See Group."""
        check_tensor(x)
        check_peer(to, self.rank, self.size)
        self.traffic.count("send", x)
        self._broadcast(self._link(self.rank, to), x, 0)

    def recv(self, x: Tensor, source: int) -> None:
        """See Group."""
        check_tensor(x)
        check_peer(source, self.rank, self.size)
        self.traffic.count("recv", x)
        self._broadcast(self._link(source, self.rank), x, 0)

    def barrier(self) -> None:
        """See Group."""
        self.traffic.count("barrier")
        self._gather(torch.zeros(1, dtype=torch.uint8))

    def abort(self) -> None:
        """See Group."""
        self._is_over = True
        self._peers.abort(self.rank)

    def close(self) -> None:
        """Close the connections."""
        self._is_over = True
        threading.Thread(
            target=_close_when_finished,
            args=([self._ranks, *self._links.values()], self._work),
            name="gloo-close",
            daemon=True,
        ).start()
        self._links = {}
        self._ranks = None

    def _gather(self, x: Tensor) -> Tensor:
        self._check_open()
        out = x.new_empty(gathered_shape(x, self.size))
        if x.numel():
            self._finish(self._ranks._allgather_base(_raw(out), _raw(x)))
        return out

    def _swap(self, x: Tensor) -> Tensor:
        self._check_open()
        out = torch.empty_like(x)
        if x.numel():
            self._finish(self._ranks.alltoall_base(_raw(out), _raw(x), [], []))
        return out

    def _broadcast(self, ranks: Any, x: Tensor, root: int) -> None:
        self._check_open()
        if x.numel():
            self._finish(ranks.broadcast(_raw(x), root))

    def _check_open(self) -> None:
        if self._is_over:
            raise GroupAborted("the group has ended")

    def _link(self, source: int, to: int) -> Any:
        """A group of two: gloo's own sends can't be waited for in slices."""
        self._check_open()
        if (source, to) not in self._links:
            name = f"{source}-{to}"
            self._await_both(f"{self._peers.name}/{name}/num_ready")
            self._links[source, to] = self._connect(name, 0 if self.rank == source else 1, 2)
        return self._links[source, to]

    def _await_both(self, key: str) -> None:
        """Wait until both ends of a link want it: only then does connecting take no time."""
        rendezvous = self._peers.rendezvous
        rendezvous.add(key, 1)
        start = time.monotonic()
        while rendezvous.peek(key) != b"2":
            self._go_on(start)
            time.sleep(_LINK_POLL_S)

    def _connect(self, name: str, rank: int, size: int) -> Any:
        rendezvous = self._peers.rendezvous
        gloo: Any = dist.ProcessGroupGloo
        options = gloo._Options()
        options._devices = [gloo.create_device(hostname=rendezvous.local_host)]
        options._timeout = timedelta(seconds=rendezvous.timeout_s)
        store = _Store(rendezvous, f"{self._peers.name}/{name}/")
        try:
            ranks = gloo(store, rank, size, options)
        except RuntimeError as error:
            self._peers.check()
            raise GroupError(f"the ranks can't connect: {error}") from error
        ranks.set_timeout(_NEVER)
        return ranks

    def _finish(self, work: dist.Work) -> None:
        self._work = work
        start = time.monotonic()
        while True:
            try:
                work.wait(_SLICE)
                return
            except RuntimeError as error:
                if work.is_completed():
                    self._is_over = True
                    raise self._reason(error) from error
            self._go_on(start)

    def _go_on(self, start: float) -> None:
        """Raise if the group has ended, or an operation has been waiting for too long."""
        try:
            self._peers.check()
        except GroupError:
            self._is_over = True
            raise
        if self._timeout_s is not None and time.monotonic() - start > self._timeout_s:
            self.abort()
            raise GroupTimeout(f"a rank didn't come within {self._timeout_s} s")

    def _reason(self, error: RuntimeError) -> GroupError:
        """Whose fault a broken connection is."""
        end = time.monotonic() + _NAMING_S
        while time.monotonic() < end:
            try:
                self._peers.check()
            except GroupError as reason:
                return reason
            time.sleep(_SLICE.total_seconds())
        return GroupAborted(f"a rank left the group: {error}")


class _Store(dist.Store):  # type: ignore[name-defined, misc]
    """The rendezvous as gloo wants it."""

    def __init__(self, rendezvous: Rendezvous, prefix: str) -> None:
        super().__init__()
        self._rendezvous = rendezvous
        self._prefix = prefix

    def set(self, key: str, value: bytes | str) -> None:
        data = value.encode() if isinstance(value, str) else bytes(value)
        self._rendezvous.set(self._prefix + key, data)

    def get(self, key: str) -> bytes:
        return self._rendezvous.get(self._prefix + key)

    def add(self, key: str, amount: int) -> int:
        return self._rendezvous.add(self._prefix + key, amount)

    def check(self, keys: list[str]) -> bool:
        return all(self._rendezvous.peek(self._prefix + key) is not None for key in keys)

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        for key in keys:
            self.get(key)


def _close_when_finished(connections: list[Any], work: dist.Work | None) -> None:
    """Close gloo's connections once that doesn't block.

    Gloo can't be told to stop what a frozen rank keeps it from finishing, and its destructor
    waits for that with Python's lock held. It fails when the frozen rank is killed.
    """
    while work is not None and not work.is_completed():
        time.sleep(_SLICE.total_seconds())
    connections.clear()


def _raw(x: Tensor) -> Tensor:
    """The same memory as bytes: gloo moves them and need not know what they are."""
    return x.view(-1).view(torch.uint8)
