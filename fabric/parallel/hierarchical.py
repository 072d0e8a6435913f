"""Groups over several hosts with several ranks each: shared memory inside, TCP between."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from fabric.core.errors import GroupError, PeerLost
from fabric.parallel.group import Group
from fabric.parallel.operands import (
    check_parts,
    check_peer,
    check_root,
    check_sum,
    check_tensor,
    gathered_shape,
    part_shape,
)
from fabric.parallel.traffic import Traffic

Hosts = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Level:
    """A group that is part of a larger one, and its ranks' numbers there."""

    group: Group
    ranks: tuple[int, ...]


class HierarchicalGroup:
    """One rank of a group that is cut by hosts.

    Each host's first rank leads: sums are taken on the hosts, then among the leaders, so that
    their order is set by the hosts alone. bf16 stays fp32 in between.
    """

    def __init__(
        self, rank: int, hosts: Hosts, local: Group, leaders: Group | None, everybody: Group
    ) -> None:
        """Combine groups that have been formed.

        Args:
            rank: This process's.
            hosts: The ranks of each host.
            local: The ranks of this host.
            leaders: The first ranks of the hosts, if this is one of them.
            everybody: All ranks, for what goes straight from one to another.
        """
        self.rank = rank
        self.size = everybody.size
        self.traffic = Traffic()
        self._hosts = hosts
        self._host_of = {r: i for i, ranks in enumerate(hosts) for r in ranks}
        self._host = self._host_of[rank]
        self._local = Level(local, hosts[self._host])
        first = tuple(ranks[0] for ranks in hosts)
        self._leaders = Level(leaders, first) if leaders is not None else None
        self._everybody = Level(everybody, tuple(range(self.size)))

    def all_reduce(self, x: Tensor) -> None:
        """See Group."""
        check_sum(x)
        self.traffic.count("all_reduce", x)
        self._sum(x)

    def all_gather(self, x: Tensor) -> Tensor:
        """See Group."""
        check_parts(x, 1)
        self.traffic.count("all_gather", x)
        gathered = self._gather(x)
        by_host = torch.tensor([rank for ranks in self._hosts for rank in ranks])
        return gathered[by_host.argsort()].view(gathered_shape(x, self.size))

    def reduce_scatter(self, x: Tensor) -> Tensor:
        """See Group."""
        check_sum(x)
        check_parts(x, self.size)
        self.traffic.count("reduce_scatter", x)
        total = x.clone()
        self._sum(total)
        return total.view(self.size, *part_shape(x, self.size))[self.rank].clone()

    def broadcast(self, x: Tensor, root: int) -> None:
        """See Group."""
        check_tensor(x)
        check_root(root, self.size)
        self.traffic.count("broadcast", x)
        home = self._host_of[root]
        if home == self._host:
            self._broadcast(self._local, x, self._hosts[home].index(root))
        self._broadcast(self._leaders, x, home)
        if home != self._host:
            self._broadcast(self._local, x, 0)

    def all_to_all(self, x: Tensor) -> Tensor:
        """See Group."""
        check_parts(x, self.size)
        self.traffic.count("all_to_all", x)
        with self._on(self._everybody) as everybody:
            return everybody.all_to_all(x)

    def send(self, x: Tensor, to: int) -> None:
        """See Group."""
        check_tensor(x)
        check_peer(to, self.rank, self.size)
        self.traffic.count("send", x)
        level = self._level_to(to)
        with self._on(level) as group:
            group.send(x, level.ranks.index(to))

    def recv(self, x: Tensor, source: int) -> None:
        """See Group."""
        check_tensor(x)
        check_peer(source, self.rank, self.size)
        self.traffic.count("recv", x)
        level = self._level_to(source)
        with self._on(level) as group:
            group.recv(x, level.ranks.index(source))

    def barrier(self) -> None:
        """See Group."""
        self.traffic.count("barrier")
        for level in (self._local, self._leaders, self._local):
            if level is not None:
                with self._on(level) as group:
                    group.barrier()

    def abort(self) -> None:
        """See Group."""
        for level in self._levels():
            # The rendezvous may be gone; the other levels must end even so.
            with suppress(GroupError):
                level.group.abort()

    def close(self) -> None:
        """See Group."""
        for level in self._levels():
            level.group.close()

    def _sum(self, x: Tensor) -> None:
        total = x.float() if x.dtype is torch.bfloat16 else x
        for level in (self._local, self._leaders):
            if level is not None:
                with self._on(level) as group:
                    group.all_reduce(total)
        self._broadcast(self._local, total, 0)
        if total is not x:
            x.copy_(total)

    def _gather(self, x: Tensor) -> Tensor:
        """All ranks' tensors, stacked host by host."""
        gathered = x.new_empty((self.size, *x.shape))
        with self._on(self._local) as local:
            own = local.all_gather(x)
        start = 0
        for host, ranks in enumerate(self._hosts):
            block = gathered[start : start + len(ranks)]
            start += len(ranks)
            if host == self._host:
                block.copy_(own.view_as(block))
            self._broadcast(self._leaders, block, host)
        self._broadcast(self._local, gathered, 0)
        return gathered

    def _broadcast(self, level: Level | None, x: Tensor, root: int) -> None:
        if level is not None:
            with self._on(level) as group:
                group.broadcast(x, root)

    def _level_to(self, peer: int) -> Level:
        return self._local if peer in self._local.ranks else self._everybody

    def _levels(self) -> list[Level]:
        return [x for x in (self._local, self._leaders, self._everybody) if x is not None]

    @contextmanager
    def _on(self, level: Level) -> Iterator[Group]:
        """One of the groups; when it ends, the others do, so that nobody waits in them."""
        try:
            yield level.group
        except PeerLost as error:
            self.abort()
            raise PeerLost(level.ranks[error.rank]) from error
        except GroupError:
            self.abort()
            raise
