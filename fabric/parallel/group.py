"""What a group of ranks can do together, and the group of one."""

from typing import Protocol

from torch import Tensor

from fabric.parallel.operands import check_parts, check_peer, check_root, check_sum, check_tensor
from fabric.parallel.traffic import Traffic


class Group(Protocol):
    """Ranks that run collectives together; every rank calls the same ones in the same order.

    Tensors are contiguous and alike on all ranks. Sums take fp32, bf16 (summed in fp32, rounded
    once), int32 and int64; everything else takes any dtype. A sum's result is bitwise the same
    on all ranks and in every run. One thread at a time uses a group; any may call ``abort``.

    All operations raise ``PeerLost``, ``GroupTimeout`` or ``GroupAborted`` once the ranks can't
    go on, on every rank that lives; and ``OperandError`` for a tensor that can't be taken.
    """

    @property
    def rank(self) -> int:
        """This rank's number, from 0."""
        ...

    @property
    def size(self) -> int:
        """How many ranks there are."""
        ...

    @property
    def traffic(self) -> Traffic:
        """What this rank has handed to the group."""
        ...

    def all_reduce(self, x: Tensor) -> None:
        """Replace ``x`` by the sum over the ranks."""
        ...

    def all_gather(self, x: Tensor) -> Tensor:
        """The ranks' tensors, concatenated along dimension 0 in the order of the ranks."""
        ...

    def reduce_scatter(self, x: Tensor) -> Tensor:
        """This rank's part of the sum, of ``size`` equal parts along dimension 0."""
        ...

    def broadcast(self, x: Tensor, root: int) -> None:
        """Replace ``x`` by the root's."""
        ...

    def all_to_all(self, x: Tensor) -> Tensor:
        """Part r along dimension 0 goes to rank r; what came, in the order of the ranks."""
        ...

    def send(self, x: Tensor, to: int) -> None:
        """Hand ``x`` to another rank, which must receive it; may return before it does."""
        ...

    def recv(self, x: Tensor, source: int) -> None:
        """Replace ``x`` by the next tensor that another rank sends to this one."""
        ...

    def barrier(self) -> None:
        """Return when all ranks have called it."""
        ...

    def abort(self) -> None:
        """Give the group up: whoever waits in it, or calls it later, gets ``GroupAborted``."""
        ...

    def close(self) -> None:
        """Release what the group holds; the other ranks must not be waiting for this one."""
        ...


class SoloGroup:
    """A group of one: nothing is moved, and what is returned is what was passed."""

    rank = 0
    size = 1

    def __init__(self) -> None:
        self.traffic = Traffic()

    def all_reduce(self, x: Tensor) -> None:
        """Leave ``x`` as it is."""
        check_sum(x)
        self.traffic.count("all_reduce", x)

    def all_gather(self, x: Tensor) -> Tensor:
        """Return ``x``."""
        check_parts(x, 1)
        self.traffic.count("all_gather", x)
        return x

    def reduce_scatter(self, x: Tensor) -> Tensor:
        """Return ``x``."""
        check_sum(x)
        check_parts(x, 1)
        self.traffic.count("reduce_scatter", x)
        return x

    def broadcast(self, x: Tensor, root: int) -> None:
        """Leave ``x`` as it is."""
        check_tensor(x)
        check_root(root, 1)
        self.traffic.count("broadcast", x)

    def all_to_all(self, x: Tensor) -> Tensor:
        """Return ``x``."""
        check_parts(x, 1)
        self.traffic.count("all_to_all", x)
        return x

    def send(self, x: Tensor, to: int) -> None:
        """Refuse: there is no other rank.

        Raises:
            OperandError: Always.
        """
        check_peer(to, self.rank, 1)

    def recv(self, x: Tensor, source: int) -> None:
        """Refuse: there is no other rank.

        Raises:
            OperandError: Always.
        """
        check_peer(source, self.rank, 1)

    def barrier(self) -> None:
        """Return."""
        self.traffic.count("barrier")

    def abort(self) -> None:
        """Do nothing: nobody waits."""

    def close(self) -> None:
        """Do nothing: nothing is held."""
