"""The numbers that multi-level feedback queues go by."""

from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate

_MAX_LEVELS = 64
_LONGEST_QUANTUM_S = 3600.0


@dataclass(frozen=True, slots=True)
class Quanta:
    """How long a sequence may run in each queue before it sinks; the last is the longest.

    ``until_s`` holds for each level the sum of the quanta above it, and one for below all.
    """

    quanta_s: tuple[float, ...]
    until_s: tuple[float, ...]

    @classmethod
    def geometric(cls, first_s: float, ratio: float) -> "Quanta":
        """Each quantum ``ratio`` times the one before it, up to an hour."""
        quanta_s = [first_s]
        while quanta_s[-1] < _LONGEST_QUANTUM_S and len(quanta_s) < _MAX_LEVELS:
            quanta_s.append(quanta_s[-1] * ratio)
        return cls(tuple(quanta_s), tuple(accumulate(quanta_s, initial=0.0)))

    @property
    def last(self) -> int:
        """The number of the lowest queue."""
        return len(self.quanta_s) - 1

    def level_for(self, seconds: float) -> int:
        """The first queue whose quantum is at least so long, or the last one."""
        return min(bisect_left(self.quanta_s, seconds), self.last)


@dataclass(frozen=True, slots=True)
class Starvation:
    """After how long a wait a sequence is promoted: alpha.

    It is ``alpha_s``, or ``alpha_load`` times the recent mean time that requests stay if that is
    longer: a fixed alpha promotes everyone under overload, which is round-robin.
    """

    alpha_s: float
    alpha_load: float
