"""How long iterations and copies take on a device, as measured: what policies reckon with."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CopySpeed:
    """A tier's link to the device, one way: bytes a second, after ``latency_s`` for each batch."""

    tier: str
    direction: str
    bytes_per_s: float
    latency_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Profile:
    """Measured times of one model on one device group.

    ``prefill`` are (prompt tokens, seconds), ascending; ``decode`` are (sequences, context tokens
    of each, seconds of one iteration), a full grid, ascending.
    """

    prefill: tuple[tuple[int, float], ...]
    decode: tuple[tuple[int, int, float], ...]
    copies: tuple[CopySpeed, ...] = ()
    block_bytes: int = 0

    def prefill_s(self, num_tokens: int) -> float:
        """Seconds to compute a prompt of so many tokens alone, in as many chunks as it takes."""
        raise NotImplementedError

    def decode_s(self, num_sequences: int, context: int) -> float:
        """Seconds of an iteration that computes one token of each of so many sequences."""
        raise NotImplementedError

    def copy_s(self, tier: str, direction: str, num_bytes: int) -> float:
        """Seconds to copy so many bytes when nothing else is copied."""
        raise NotImplementedError
