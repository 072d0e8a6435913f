"""Attainment of objectives, and the highest rate at which enough requests have them met."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

TARGET = 0.99


@dataclass(frozen=True)
class Search:
    """Rates to try: ``start * step ** k``, first in strides of ``stride`` steps, then one by one.

    Rates are from a grid, so that those of different setups and seeds are the same ones, and the
    result is known to a factor of ``step``.
    """

    start_per_s: float
    step: float = 1.12
    stride: int = 4
    min_k: int = -16
    max_k: int = 20

    def rate(self, k: int) -> float:
        """The rate of the grid's point ``k``, in requests a second."""
        return self.start_per_s * self.step**k


def find_goodput(search: Search, first_k: int, attains: Callable[[int], bool]) -> int | None:
    """The highest point of the grid whose rate is attained, as far as attaining is monotonic.

    Args:
        search: The grid.
        first_k: Where to begin.
        attains: Whether enough requests have their objectives met at a point.

    Returns:
        The point, or None if not even the lowest is attained.
    """
    low, high = _bracket(search, first_k, attains)
    if low is None:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        if attains(middle):
            low = middle
        else:
            high = middle
    return low


def num_allowed(num_requests: int, target: float = TARGET) -> int:
    """How many requests may miss."""
    return math.floor(num_requests * (1.0 - target) + 1e-9)


def attainment(are_met: Iterable[bool], num_requests: int) -> float:
    """The share of all requests, served or not, whose objectives were met."""
    return sum(are_met) / num_requests


def quantile(values: Iterable[float], share: float) -> float:
    """The value that ``share`` of all are not above; infinite without any."""
    ordered = sorted(values)
    return ordered[math.ceil(share * len(ordered)) - 1] if ordered else math.inf


def _bracket(
    search: Search, first_k: int, attains: Callable[[int], bool]
) -> tuple[int | None, int]:
    """A point that is attained and a higher one that isn't."""
    k = first_k
    if attains(k):
        while k < search.max_k and attains(k + search.stride):
            k += search.stride
        return k, k + search.stride
    while k > search.min_k:
        k -= search.stride
        if attains(k):
            return k, k + search.stride
    return None, k
