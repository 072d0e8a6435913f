"""Where blocks are parked: what the tiers have in common."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from fabric.engine.device_blocks import DeviceBlocks, Pairs

UNBOUNDED = 2**62


def piece_blocks(block_bytes: int, *bounds: int) -> int:
    """How many blocks at most are copied at once, where each of the bounds is in bytes."""
    return max(1, min(bounds) // block_bytes)


class CopyFailed(Exception):
    """Blocks could not be copied, or are not what they were; says which and why."""


class BlockTier(Protocol):
    """Slots that hold a block each; several copy threads use different ones at once.

    It takes ``max_piece_bytes`` at once, or one block.
    """

    max_piece_bytes: int

    @property
    def num_slots(self) -> int:
        """How many blocks the tier holds."""
        ...

    @property
    def memory(self) -> Sequence[Tensor]:
        """The host memory that blocks are copied to and from."""
        ...

    def store(self, device: DeviceBlocks, pairs: Pairs, fence: object) -> None:
        """Copy (block, slot) pairs off the device.

        Raises:
            CopyFailed: A slot could not be written.
            OSError: The same.
        """
        ...

    def load(self, device: DeviceBlocks, pairs: Pairs, fence: object) -> None:
        """Copy (block, slot) pairs onto the device.

        Raises:
            CopyFailed: A slot could not be read, or is not what was stored.
            OSError: The same.
        """
        ...

    def close(self, leaves_parked: bool = False) -> None:
        """Give the memory or the file back, or leave it to the worker's successor if it can."""
        ...


def check_digests(place: str, pairs: Pairs, found: Sequence[int], expected: Sequence[int]) -> None:
    """Compare what came back with what was stored.

    Raises:
        CopyFailed: They differ; names the first slot, and ``place``.
    """
    for (block, slot), ours, theirs in zip(pairs, found, expected, strict=True):
        if ours != theirs:
            raise CopyFailed(f"{place}: slot {slot} for block {block} is not what was stored")
