"""The same problems as integer programs, for HiGHS: any stack, in its time.

Source: Alpa (Zheng et al., OSDI 2022), section 4.2, with links between choices and pairs of
choices as equalities, which bound the program better than inequalities do.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from fabric.core.errors import ConfigError
from placement.parallelize.elimination import combined, sizes_of
from placement.parallelize.factors import Factor, Problem
from placement.parallelize.layouts import LongArray
from placement.workload.trace import FloatArray


@dataclass(frozen=True, slots=True)
class MilpResult:
    """What the solver found: an assignment, if any, and that none costs less than ``bound``."""

    assignment: dict[str, int] | None
    seconds: float
    bound: float
    is_optimal: bool


class _Program:
    """Columns and equations in the making."""

    def __init__(self) -> None:
        self.costs: list[FloatArray] = []
        self.num_columns = 0
        self.num_rows = 0
        self._entries: list[tuple[LongArray, LongArray, FloatArray]] = []

    def columns(self, costs: FloatArray) -> int:
        """Add columns; returns the first one's number."""
        first = self.num_columns
        self.costs.append(costs)
        self.num_columns += len(costs)
        return first

    def entries(self, rows: LongArray, columns: LongArray, values: FloatArray) -> None:
        """Add to equations, of which there are at least so many."""
        self._entries.append((rows, columns, values))

    def matrix(self) -> csr_array:
        """All equations."""
        rows, columns, values = (np.concatenate(part) for part in zip(*self._entries, strict=True))
        shape = (self.num_rows, self.num_columns)
        return csr_array((values, (rows, columns)), shape=shape)


def solve_milp(
    problem: Problem, memory_bytes: int | None, limit_s: float, gap: float = 0.0
) -> MilpResult:
    """Solve a problem whose factors have two variables at most.

    Args:
        problem: What to solve.
        memory_bytes: Of the fullest device; None: any.
        limit_s: Seconds after which the best so far is taken.
        gap: Share of the cost by which the result may exceed the least.

    Raises:
        ConfigError: A factor has more than two variables.
    """
    problem, followers = _without_followers(problem)
    scale = _scale(problem)
    program = _Program()
    firsts = _choices(program, problem, scale)
    targets = [1.0] * program.num_rows
    for factor in problem.factors:
        if len(factor.names) > 2:
            raise ConfigError(f"a factor of {', '.join(factor.names)} has more than two variables")
        if len(factor.names) == 2:
            _link(program, factor, firsts, scale)
            targets += [0.0] * sum(factor.table.shape)
    num_choices = sum(variable.size for variable in problem.variables.values())
    constraints = [LinearConstraint(program.matrix(), targets, targets)]
    if memory_bytes is not None:
        constraints.append(_memory(problem, firsts, program.num_columns, memory_bytes))
    is_choice = np.arange(program.num_columns) < num_choices
    costs = np.concatenate(program.costs)
    possible = np.isfinite(costs)
    found = milp(
        np.where(possible, costs, 0.0),
        integrality=is_choice.astype(int),
        bounds=Bounds(0.0, np.where(possible, 1.0, 0.0)),
        constraints=constraints,
        options={"time_limit": limit_s, "mip_rel_gap": gap},
    )
    bound = getattr(found, "mip_dual_bound", None)
    lowest = -math.inf if bound is None else float(bound) * scale
    if found.x is None:
        return MilpResult(None, math.inf, lowest, False)
    assignment = {
        name: int(found.x[first : first + problem.variables[name].size].argmax())
        for name, first in firsts.items()
    }
    seconds = problem.seconds(assignment)
    for name, (leader, values) in followers.items():
        assignment[name] = values[assignment[leader]]
    return MilpResult(assignment, seconds, lowest, found.status == 0)


def _scale(problem: Problem) -> float:
    """Seconds that count as 1: a hundredth of the dearest operator's best time."""
    least = [float(factor.table.min()) for factor in problem.factors]
    return max([0.0, *(seconds for seconds in least if math.isfinite(seconds))]) / 100 or 1.0


def _choices(program: _Program, problem: Problem, scale: float) -> dict[str, int]:
    """A column for each value of each variable, of which exactly one is taken."""
    own: dict[str, list[Factor]] = {name: [] for name in problem.variables}
    for factor in problem.factors:
        if len(factor.names) == 1:
            own[factor.names[0]].append(factor)
    sizes = sizes_of(problem)
    firsts = {}
    for name, size in sizes.items():
        first = firsts[name] = program.columns(combined([name], own[name], sizes) / scale)
        rows = np.full(size, program.num_rows)
        program.entries(rows, np.arange(first, first + size), np.ones(size))
        program.num_rows += 1
    return firsts


def _link(program: _Program, factor: Factor, firsts: Mapping[str, int], scale: float) -> None:
    """A column for each pair of values; those of a value add up to the value's own column."""
    height, width = factor.table.shape
    first = program.columns(factor.table.reshape(-1) / scale)
    pairs = np.arange(height * width)
    row = program.num_rows
    program.entries(row + pairs // width, first + pairs, np.ones(len(pairs)))
    program.entries(row + height + pairs % width, first + pairs, np.ones(len(pairs)))
    for offset, size, name in ((0, height, factor.names[0]), (height, width, factor.names[1])):
        values = np.arange(size)
        program.entries(row + offset + values, firsts[name] + values, -np.ones(size))
    program.num_rows += height + width


def _memory(
    problem: Problem, firsts: Mapping[str, int], num_columns: int, memory_bytes: int
) -> LinearConstraint:
    used = np.zeros(num_columns)
    for name, variable in problem.variables.items():
        if variable.num_bytes is not None:
            used[firsts[name] : firsts[name] + variable.size] = variable.num_bytes
    room = memory_bytes - problem.fixed_bytes
    unit = max(float(used.max()), 1.0)
    return LinearConstraint(csr_array(used[None, :] / unit), -np.inf, room / unit)


def _without_followers(problem: Problem) -> tuple[Problem, dict[str, tuple[str, list[int]]]]:
    """Drop variables that only say how another one's weights are kept: it takes the smallest.

    Returns:
        What is left, and of each variable that was dropped, the one that it follows and its value
        for each of that one's.
    """
    users: dict[str, list[Factor]] = {name: [] for name in problem.variables}
    for factor in problem.factors:
        for name in factor.names:
            users[name].append(factor)
    variables = dict(problem.variables)
    dropped: dict[str, tuple[str, list[int]]] = {}
    gone: set[int] = set()
    for name, factors in users.items():
        sizes = variables[name].num_bytes
        if sizes is None or len(factors) != 1 or factors[0].names[1:] != (name,):
            continue
        leader, table = factors[0].names[0], factors[0].table
        is_free = bool(np.all((table == 0) | np.isinf(table)))
        if not is_free or leader in dropped or variables[leader].num_bytes is not None:
            continue
        taken = np.where(np.isinf(table), np.iinfo(np.int64).max, sizes[None, :])
        best = taken.argmin(axis=1)
        dropped[name] = (leader, best.tolist())
        variables[leader] = replace(variables[leader], num_bytes=sizes[best])
        del variables[name]
        gone.add(id(factors[0]))
    rest = tuple(factor for factor in problem.factors if id(factor) not in gone)
    return Problem(variables, rest, problem.fixed_bytes), dropped
