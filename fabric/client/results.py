"""Results that only clients need; the others are values of fabric.core."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tokenized:
    """Token ids, and the longest context in tokens that the model serves."""

    token_ids: tuple[int, ...]
    max_model_len: int


@dataclass(frozen=True, slots=True)
class DrainOutcome:
    """Whether nothing is in flight any more, and how many requests still are."""

    drained: bool
    num_inflight: int
