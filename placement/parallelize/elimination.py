"""Exact minimization of a sum of factors, one variable after the other.

Layers follow each other, so few variables are ever connected at a time, and tables stay small.
Source: Bertele and Brioschi, Nonserial Dynamic Programming (1972).
"""

import heapq
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fabric.core.errors import ConfigError
from placement.parallelize.factors import Factor, Problem
from placement.parallelize.layouts import LongArray
from placement.workload.trace import FloatArray

MAX_TABLE = 50_000_000
"""Entries of the largest table that is still worth its memory."""


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """A variable that is gone: its best value for each combination of its neighbors'."""

    name: str
    neighbors: tuple[str, ...]
    best: LongArray


class TooWide(ConfigError):
    """The factors connect too many variables for elimination."""


def minimize(
    problem: Problem, seconds_per_byte: float = 0.0, is_timed: bool = True
) -> dict[str, int]:
    """The assignment of the least cost, with bytes weighed so.

    Among assignments that cost the same, one with few bytes is preferred.

    Raises:
        TooWide: Too many variables depend on each other.
    """
    rest, steps = eliminate(sizes_of(problem), problem.weighing(seconds_per_byte, is_timed), ())
    assignment: dict[str, int] = {}
    for step in reversed(steps):
        place = tuple(assignment[name] for name in step.neighbors)
        assignment[step.name] = int(step.best[place])
    if not math.isfinite(sum(float(factor.table) for factor in rest)):
        raise AssertionError("a problem that the operator graph drew has no solution")
    return assignment


def eliminate(
    sizes: Mapping[str, int], factors: Sequence[Factor], keep: Collection[str]
) -> tuple[list[Factor], list[Step]]:
    """Minimize over all variables but some.

    Returns:
        Factors over the variables that were kept, and how the others follow from them, to be
        read backwards.

    Raises:
        TooWide: Too many variables depend on each other.
    """
    pool = _Pool(sizes, factors)
    steps = []
    heap = [(pool.width(name), name) for name in pool.users if name not in keep]
    heapq.heapify(heap)
    gone: set[str] = set()
    while heap:
        width, name = heapq.heappop(heap)
        if name in gone or width != (now := pool.width(name)):
            if name not in gone:
                heapq.heappush(heap, (now, name))
            continue
        gone.add(name)
        steps.append(pool.remove(name))
        for neighbor in steps[-1].neighbors:
            if neighbor not in keep:
                heapq.heappush(heap, (pool.width(neighbor), neighbor))
    return list(pool.factors.values()), steps


def combined(
    names: Sequence[str], factors: Sequence[Factor], sizes: Mapping[str, int]
) -> FloatArray:
    """The sum of factors as one table over the named variables, in this order."""
    total = np.zeros([sizes[name] for name in names])
    for factor in factors:
        order = sorted(range(len(factor.names)), key=lambda k: names.index(factor.names[k]))
        shape = [sizes[name] if name in factor.names else 1 for name in names]
        total += factor.table.transpose(order).reshape(shape)
    return total


def sizes_of(problem: Problem) -> dict[str, int]:
    """How many values each variable has."""
    return {name: variable.size for name, variable in problem.variables.items()}


class _Pool:
    """The factors that are left, and which of them each variable is in."""

    def __init__(self, sizes: Mapping[str, int], factors: Sequence[Factor]) -> None:
        self.factors = dict(enumerate(factors))
        self._sizes = sizes
        self._next = len(factors)
        self.users: dict[str, set[int]] = {name: set() for name in sizes}
        for number, factor in self.factors.items():
            for name in factor.names:
                self.users[name].add(number)

    def width(self, name: str) -> int:
        """Entries of the table that removing a variable takes."""
        scope = {other for number in self.users[name] for other in self.factors[number].names}
        return math.prod(self._sizes[other] for other in scope)

    def remove(self, name: str) -> Step:
        """Minimize over a variable."""
        if self.width(name) > MAX_TABLE:
            raise TooWide(
                f"eliminating {name} takes a table of {self.width(name)} entries; at most "
                f"{MAX_TABLE} are allowed. The template solver needs none so large"
            )
        taken = [self.factors.pop(number) for number in sorted(self.users.pop(name))]
        others = sorted({other for factor in taken for other in factor.names} - {name})
        table = combined([*others, name], taken, self._sizes)
        best = np.asarray(table.argmin(axis=-1))
        least = np.asarray(np.take_along_axis(table, best[..., None], axis=-1)[..., 0])
        for other in others:
            self.users[other] = {n for n in self.users[other] if n in self.factors}
            self.users[other].add(self._next)
        self.factors[self._next] = Factor(tuple(others), least)
        self._next += 1
        return Step(name, tuple(others), best)
