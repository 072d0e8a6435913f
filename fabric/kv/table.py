"""One sequence's block table, and where its blocks are."""

from enum import Enum

from fabric.kv.prefix import PrefixChain
from fabric.kv.transfer import Tier

ABSENT = -1


class Residence(Enum):
    """Where a sequence's KV is.

    RESIDENT: on the device. COPYING_OUT: there too, on its way to a tier. PARKED: in tiers, but
    for blocks that resident sequences share. COPYING_IN: on its way back.
    """

    RESIDENT = "resident"
    COPYING_OUT = "copying_out"
    PARKED = "parked"
    COPYING_IN = "copying_in"


class BlockTable:
    """The blocks of one sequence, in order.

    ``blocks`` are device blocks, ABSENT where the block is parked; ``slots`` are the parked ones'
    places by position. The first ``num_registered`` blocks are in the prefix cache. ``flights``
    are the transfers under way that its residence waits for, and ``num_tokens`` have KV, if it
    isn't resident.
    """

    __slots__ = (
        "blocks", "chain", "flights", "num_registered", "num_tokens", "residence", "slots",
    )  # fmt: skip

    def __init__(self, blocks: list[int], chain: PrefixChain, num_registered: int) -> None:
        self.blocks = blocks
        self.chain = chain
        self.num_registered = num_registered
        self.residence = Residence.RESIDENT
        self.slots: dict[int, tuple[Tier, int]] = {}
        self.flights: set[int] = set()
        self.num_tokens = 0
