"""Histograms that cost little enough to note every token."""

from bisect import bisect_left
from itertools import accumulate


class Histogram:
    """Counts values by bucket; for one thread. ``bounds`` are the buckets' upper ends, ascending.

    A library's histogram takes a lock and walks its buckets in Python at each value.
    """

    __slots__ = ("_bounds", "_counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def note(self, value: float) -> None:
        """Count a value; one that equals a bound belongs below it."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        """How many values were noted."""
        return sum(self._counts)

    def buckets(self) -> list[tuple[str, float]]:
        """Prometheus' cumulative buckets: each bound as text, and how many values it holds."""
        names = [*map(str, map(float, self._bounds)), "+Inf"]
        return list(zip(names, map(float, accumulate(self._counts)), strict=True))
