"""Counts of what a rank hands to its group."""

from collections import Counter
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Traffic:
    """Calls and bytes of each operation since the group was formed.

    The bytes are those of the tensor that this rank passed, however the group moves them.
    """

    calls: Counter[str] = field(default_factory=Counter)
    num_bytes: Counter[str] = field(default_factory=Counter)

    def count(self, operation: str, x: Tensor | None = None) -> None:
        """Count one call, of one tensor if the operation takes any."""
        self.calls[operation] += 1
        if x is not None:
            self.num_bytes[operation] += x.nbytes
