"""What the deciding half asks of those who move KV blocks, and what they answer."""

from dataclasses import dataclass
from enum import StrEnum

from fabric.core.weights import WeightOrder


class Tier(StrEnum):
    """Where parked blocks are; each tier is a row of slots that hold one block each."""

    HOST = "host"
    DISK = "disk"


class Direction(StrEnum):
    """Off the device, or onto it."""

    OUT = "out"
    IN = "in"


@dataclass(frozen=True, slots=True)
class Transfer:
    """Block copies that are made, and reported on, as a whole.

    ``pairs`` are (device block, slot of the tier). The ``number`` is never used again: it is the
    epoch that fences off completions which come after their blocks have another use.
    """

    number: int
    direction: Direction
    tier: Tier
    pairs: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class TransferResult:
    """A transfer is over: all of its blocks are copied, or ``error`` says why they are not.

    ``num_bytes`` were copied in ``copy_s``, after ``queue_s`` behind earlier transfers.
    """

    number: int
    error: str = ""
    num_bytes: int = 0
    queue_s: float = 0.0
    copy_s: float = 0.0


@dataclass(frozen=True, slots=True)
class BlockOrders:
    """What workers do with blocks of one model before the next iteration, in this order.

    ``poisoned`` blocks are free: they are filled with NaN, in debug mode, so that nobody reads
    them unnoticed. ``transfers`` are begun, and go on beside the iterations. ``model`` is the
    model's place in its group.
    """

    poisoned: tuple[int, ...] = ()
    transfers: tuple[Transfer, ...] = ()
    model: int = 0

    def __bool__(self) -> bool:
        return bool(self.poisoned or self.transfers)


@dataclass(frozen=True, slots=True)
class WorkerOrders:
    """What workers do before the next iteration, in this order.

    They move ``weights``, where an EVICT frees its memory at once and a LOAD goes on beside the
    iterations that follow; ``punched`` slabs are in nobody's use, and their memory goes back to
    the system; then each model's ``blocks``. A transfer's number tells it from all others of the
    group, whichever model's it is.
    """

    blocks: tuple[BlockOrders, ...] = ()
    weights: tuple[WeightOrder, ...] = ()
    punched: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.blocks or self.weights or self.punched)


@dataclass(frozen=True, slots=True)
class ParkingSpace:
    """How many blocks each tier holds, and what one block weighs."""

    num_host_slots: int = 0
    num_disk_slots: int = 0
    block_bytes: int = 0

    def num_slots(self, tier: Tier) -> int:
        """The slots of a tier."""
        return self.num_host_slots if tier is Tier.HOST else self.num_disk_slots
