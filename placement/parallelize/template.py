"""Stacks of equal layers under a memory budget: exact, by one table for each kind of block.

What is inside of a block is eliminated once for each layout of what comes in and goes out, and
for each amount of memory. What remains is a chain of blocks, which compiled code solves.
"""

import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from placement import _native
from placement.parallelize.elimination import combined, eliminate, minimize, sizes_of
from placement.parallelize.factors import Block, Factor, Problem, Variable, piece, placed
from placement.parallelize.layouts import LongArray
from placement.parallelize.stage import Phase
from placement.workload.trace import FloatArray, IntArray

ROUNDING = 1e-12
"""Ways that cost less by a smaller share than this are no better: sums are rounded."""


@dataclass(frozen=True, slots=True, eq=False)
class BlockTemplate:
    """All ways through a block that are worth it, each an element of every array.

    ``sources`` and ``targets`` number the layouts at its ends, of all phases together, out of
    ``num_sources`` and ``num_targets``. ``kept`` numbers how weights and KV are kept. ``costs``
    are the phases' weighted seconds, ``phase_s`` ``[num_phases, num_ways]`` those of each.
    """

    block: Block
    num_sources: int
    num_targets: int
    sources: IntArray
    targets: IntArray
    num_bytes: LongArray
    kept: LongArray
    costs: FloatArray
    phase_s: FloatArray
    _known: dict[int, dict[str, int]] = field(default_factory=dict, repr=False)

    @property
    def ways(self) -> "_native.Ways":
        """As compiled code takes them."""
        ends = (self.num_sources, self.num_targets, self.sources, self.targets)
        return (*ends, self.num_bytes, self.costs)

    def assignment(self, way: int) -> dict[str, int]:
        """What all of the block's variables are on a way."""
        if way not in self._known:
            self._known[way] = self._assign(way)
        return self._known[way]

    def _assign(self, way: int) -> dict[str, int]:
        variables = {variable.name: variable for variable in self.block.variables}
        shared = [each for each in self.block.variables if each.phase is None]
        fixed = _digits(shared, int(self.kept[way]))
        for ends, number in (
            (self.block.sources, self.sources),
            (self.block.targets, self.targets),
        ):
            fixed |= _digits([variables[name] for name in ends], int(number[way]))
        free = {name: each for name, each in variables.items() if name not in fixed}
        factors = tuple(_restricted(factor, fixed) for factor in self.block.factors)
        return fixed | minimize(Problem(free, factors))


def template_of(
    block: Block,
    phases: tuple[Phase, ...],
    fixed: dict[str, int] | None = None,
    has_fixed_bytes: bool = True,
) -> BlockTemplate:
    """Eliminate what is inside of a block.

    Args:
        block: The block.
        phases: Those that it was drawn for.
        fixed: Values of some of the variables that phases share.
        has_fixed_bytes: Whether to count the bytes of those.
    """
    tables = [_phase_table(block, number) for number in range(len(phases))]
    num_bytes = _bytes_of_kept(block, fixed or {}, has_fixed_bytes)
    possible = num_bytes >= 0
    for table in tables:
        possible &= np.isfinite(table).any(axis=(0, 1))
    found = _found(tables, np.where(possible, num_bytes, -1))
    sources, targets, kept = found
    by_phase = _by_phase(tables, sources, targets, kept)
    weights = np.array([[phase.weight] for phase in phases])
    return BlockTemplate(
        block,
        math.prod(table.shape[0] for table in tables),
        math.prod(table.shape[1] for table in tables),
        sources.astype(np.int32),
        targets.astype(np.int32),
        num_bytes[kept],
        kept,
        np.asarray(sum(by_phase)),
        np.stack(by_phase) / weights,
    )


@dataclass(frozen=True)
class TemplateChain:
    """Blocks one after the other, each with its template's number."""

    templates: tuple[BlockTemplate, ...]
    order: tuple[int, ...]

    @cached_property
    def native(self) -> _native.Chain:
        """The chain, compiled code's."""
        return _native.Chain([each.ways for each in self.templates], list(self.order))

    def assignment(self, ways: tuple[int, ...]) -> dict[str, int]:
        """The ways' choices, with the names of the joined problem."""
        result: dict[str, int] = {}
        for place, (number, way) in enumerate(zip(self.order, ways, strict=True)):
            template = self.templates[number]
            inherited = template.block.sources if place else ()
            for name, value in template.assignment(way).items():
                if name not in inherited:
                    result[placed(place, name)] = value
        return result


def _phase_table(block: Block, phase: int) -> FloatArray:
    """Seconds of ``[source, target, kept]`` in one phase."""
    problem = piece(block)
    own = {variable.name for variable in block.variables if variable.phase == phase}
    factors = [factor for factor in block.factors if own & set(factor.names)]
    sizes = sizes_of(problem)
    shared = [variable.name for variable in block.variables if variable.phase is None]
    ends = [names[phase] for names in (block.sources, block.targets) if names]
    used = {name: sizes[name] for name in (*own, *shared)}
    rest, _ = eliminate(used, factors, {*ends, *shared})
    shape = [sizes[names[phase]] if names else 1 for names in (block.sources, block.targets)]
    return combined([*ends, *shared], rest, sizes).reshape(*shape, -1)


def _bytes_of_kept(block: Block, fixed: dict[str, int], has_fixed_bytes: bool) -> LongArray:
    """Bytes of each way to keep weights and KV, -1 where it isn't the fixed one."""
    total: LongArray = np.full((1,), block.fixed_bytes, np.int64)
    allowed = np.ones(1, np.bool_)
    for variable in block.variables:
        if variable.phase is not None:
            continue
        sizes = np.zeros(variable.size, np.int64)
        if variable.num_bytes is not None and (has_fixed_bytes or variable.name not in fixed):
            sizes = variable.num_bytes
        total = np.add.outer(total, sizes).reshape(-1)
        is_open = np.arange(variable.size) == fixed.get(variable.name, np.arange(variable.size))
        allowed = np.logical_and.outer(allowed, is_open).reshape(-1)
    return np.where(allowed, total, -1)


def _found(tables: list[FloatArray], num_bytes: LongArray) -> tuple[LongArray, ...]:
    """Source, target and ways to keep of each way than which none is both smaller and cheaper."""
    best = np.full((1, 1), np.inf)
    columns: list[tuple[LongArray, ...]] = []
    for size in np.unique(num_bytes[num_bytes >= 0]):
        kept = np.flatnonzero(num_bytes == size)
        joint = _joint([table[:, :, kept] for table in tables])
        choice = np.asarray(joint.argmin(axis=-1))
        least = np.take_along_axis(joint, choice[..., None], axis=-1)[..., 0]
        sources, targets = np.nonzero(least < best * (1 - ROUNDING))
        best = np.minimum(best, least)
        columns.append((sources, targets, kept[choice[sources, targets]]))
    return tuple(np.concatenate(column) for column in zip(*columns, strict=True))


def _joint(tables: list[FloatArray]) -> FloatArray:
    """Seconds of all phases together: ends of all phases' layouts, and ways to keep."""
    joint = tables[0]
    for table in tables[1:]:
        pairs = joint[:, None, :, None, :] + table[None, :, None, :, :]
        joint = pairs.reshape(joint.shape[0] * table.shape[0], joint.shape[1] * table.shape[1], -1)
    return joint


def _by_phase(
    tables: list[FloatArray], sources: LongArray, targets: LongArray, kept: LongArray
) -> list[FloatArray]:
    seconds = []
    for table in reversed(tables):
        seconds.append(table[sources % table.shape[0], targets % table.shape[1], kept])
        sources, targets = sources // table.shape[0], targets // table.shape[1]
    return seconds[::-1]


def _digits(variables: list[Variable], number: int) -> dict[str, int]:
    """The variables' values that a number stands for, the last one counting by ones."""
    values = {}
    for variable in reversed(variables):
        number, values[variable.name] = divmod(number, variable.size)
    return values


def _restricted(factor: Factor, fixed: dict[str, int]) -> Factor:
    index = tuple(fixed.get(name, slice(None)) for name in factor.names)
    names = tuple(name for name in factor.names if name not in fixed)
    return Factor(names, np.asarray(factor.table[index]))
