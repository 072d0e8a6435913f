"""Functions through measured points, quick enough to be asked in every iteration."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from fabric.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Line:
    """Straight lines from point to point; constant before the first."""

    xs: tuple[int, ...]
    ys: tuple[float, ...]
    slope: float

    @classmethod
    def through(cls, name: str, points: Sequence[tuple[int, float]]) -> "Line":
        """The line through points (x, y) in ascending order; where y falls, it is lowered before.

        Raises:
            ConfigError: There is no point, or they are out of order; begins with ``name``.
        """
        xs = tuple(x for x, _ in points)
        ys = _levelled(name, [y for _, y in points])
        _check_ascending(name, xs)
        return cls(xs, ys, _last_slope(xs, ys))

    def at(self, x: int) -> float:
        """The value at x; beyond the last point, by the slope before it."""
        if x <= self.xs[0]:
            return self.ys[0]
        if x >= self.xs[-1]:
            return self.ys[-1] + (x - self.xs[-1]) * self.slope
        i, share = _place(self.xs, x)
        return self.ys[i] + share * (self.ys[i + 1] - self.ys[i])


@dataclass(frozen=True, slots=True)
class Grid:
    """Bilinear in cells; beyond the last ones, the cost of a sequence, and of a token of one."""

    sizes: tuple[int, ...]
    contexts: tuple[int, ...]
    rows: tuple[tuple[float, ...], ...]
    sequence_s: float
    token_s: float

    @classmethod
    def through(cls, name: str, points: Sequence[tuple[int, int, float]]) -> "Grid":
        """The surface through points (sequences, context, seconds), a full grid, ascending.

        Raises:
            ConfigError: There is no point, or they are no such grid; begins with ``name``.
        """
        sizes = tuple(dict.fromkeys(size for size, _, _ in points))
        contexts = tuple(dict.fromkeys(context for _, context, _ in points))
        _check_ascending(f"{name} (sequences)", sizes)
        _check_ascending(f"{name} (context)", contexts)
        if [point[:2] for point in points] != [(s, c) for s in sizes for c in contexts]:
            raise ConfigError(f"{name}: not every context comes with every batch, in order")
        width = len(contexts)
        seconds = [
            _levelled(name, [point[2] for point in points[i : i + width]])
            for i in range(0, len(points), width)
        ]
        columns = [_levelled(name, column) for column in zip(*seconds, strict=True)]
        rows = tuple(zip(*columns, strict=True))
        token_s = _last_slope(contexts, rows[-1]) / sizes[-1]
        return cls(sizes, contexts, rows, _last_slope(sizes, columns[-1]), token_s)

    def at(self, size: int, context: int) -> float:
        """Seconds for so many sequences, each with so much context."""
        i, down = _place(self.sizes, size)
        j, right = _place(self.contexts, context)
        upper, lower = self.rows[i], self.rows[min(i + 1, len(self.rows) - 1)]
        next_j = min(j + 1, len(upper) - 1)
        above = upper[j] + right * (upper[next_j] - upper[j])
        below = lower[j] + right * (lower[next_j] - lower[j])
        return (
            above
            + down * (below - above)
            + max(0, size - self.sizes[-1]) * self.sequence_s
            + max(0, context - self.contexts[-1]) * size * self.token_s
        )


def _place(xs: tuple[int, ...], x: int) -> tuple[int, float]:
    """The point at or before x, and how far x is to the next; ends are not passed."""
    i = bisect_right(xs, x) - 1
    if i < 0:
        return 0, 0.0
    if i + 1 == len(xs):
        return i, 0.0
    return i, (x - xs[i]) / (xs[i + 1] - xs[i])


def _last_slope(xs: Sequence[int], ys: Sequence[float]) -> float:
    return 0.0 if len(xs) == 1 else (ys[-1] - ys[-2]) / (xs[-1] - xs[-2])


def _levelled(name: str, values: Sequence[float]) -> tuple[float, ...]:
    """The values, each at most as large as those after it."""
    for value in values:
        if not 0.0 <= value < math.inf:
            raise ConfigError(f"{name}: {value} is no time in seconds")
    return tuple(accumulate(reversed(values), min))[::-1]


def _check_ascending(name: str, values: Sequence[int]) -> None:
    if not values:
        raise ConfigError(f"{name}: nothing was measured")
    for before, after in pairwise(values):
        if after <= before:
            raise ConfigError(f"{name}: {after} comes after {before}; an ascending order is needed")
