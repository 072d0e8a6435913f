"""A plan's choices as variables, and what they cost as tables over few of them each."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from placement.parallelize.layouts import LongArray
from placement.workload.trace import FloatArray

Assignment = Mapping[str, int]
"""The number of the value that each variable takes."""


@dataclass(frozen=True, slots=True, eq=False)
class Variable:
    """Something to choose: ``labels`` name its values, for people.

    ``num_bytes`` are those of each value on the fullest device, if it takes any. ``phase`` is the
    number of the phase that it belongs to; None: all phases share it.
    """

    name: str
    labels: tuple[str, ...]
    phase: int | None = None
    num_bytes: LongArray | None = None

    @property
    def size(self) -> int:
        """Values to choose from."""
        return len(self.labels)


@dataclass(frozen=True, slots=True, eq=False)
class Factor:
    """Seconds of each combination of values of the named variables, infinite where impossible."""

    names: tuple[str, ...]
    table: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """A piece of a model that follows another one and is followed by another one.

    ``sources`` are the variables that stand for the layout of what comes in, one for each phase;
    ``targets`` those of what goes out. ``fixed_bytes`` are there however it is cut.
    """

    name: str
    variables: tuple[Variable, ...]
    factors: tuple[Factor, ...]
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    fixed_bytes: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """Choose a value of each variable: the sum of all factors is to be least."""

    variables: Mapping[str, Variable]
    factors: tuple[Factor, ...]
    fixed_bytes: int = 0

    def seconds(self, assignment: Assignment) -> float:
        """What an assignment costs."""
        return sum(_looked_up(factor, assignment) for factor in self.factors)

    def seconds_of(self, phase: int, assignment: Assignment) -> float:
        """What an assignment costs in one phase."""
        own = {name for name, variable in self.variables.items() if variable.phase == phase}
        used = (factor for factor in self.factors if own.intersection(factor.names))
        return sum(_looked_up(factor, assignment) for factor in used)

    def num_bytes(self, assignment: Assignment) -> int:
        """What an assignment takes of the fullest device."""
        used = ((each.num_bytes, name) for name, each in self.variables.items())
        taken = (int(sizes[assignment[name]]) for sizes, name in used if sizes is not None)
        return self.fixed_bytes + sum(taken)

    def weighing(self, seconds_per_byte: float, is_timed: bool = True) -> tuple[Factor, ...]:
        """The factors, and bytes as more of them.

        Without ``is_timed``, seconds don't count; what is impossible stays so.
        """
        factors = list(self.factors)
        if not is_timed:
            factors = [
                replace(each, table=np.where(np.isinf(each.table), np.inf, 0.0)) for each in factors
            ]
        for name, variable in self.variables.items():
            if variable.num_bytes is not None and seconds_per_byte:
                sizes = variable.num_bytes.astype(np.float64)
                factors.append(Factor((name,), sizes * seconds_per_byte))
        return tuple(factors)


def piece(block: Block) -> Problem:
    """A block by itself."""
    variables = {variable.name: variable for variable in block.variables}
    return Problem(variables, block.factors, block.fixed_bytes)


def joined(blocks: Iterable[Block]) -> Problem:
    """Blocks one after the other: what goes out of each comes into the next.

    A variable called ``name`` of the block at place 3 is called ``3:name``. Variables whose name
    starts with ``=`` are shared by all blocks, their bytes counted once.
    """
    variables: dict[str, Variable] = {}
    factors: list[Factor] = []
    fixed_bytes = 0
    before: tuple[str, ...] = ()
    for place, block in enumerate(blocks):
        linked = dict(zip(block.sources, before, strict=False))
        names = {
            each.name: linked.get(each.name, placed(place, each.name)) for each in block.variables
        }
        for variable in block.variables:
            if variable.name not in linked:
                _share(variables, replace(variable, name=names[variable.name]))
        for factor in block.factors:
            factors.append(replace(factor, names=tuple(names[name] for name in factor.names)))
        before = tuple(names[name] for name in block.targets)
        fixed_bytes += block.fixed_bytes
    return Problem(variables, tuple(factors), fixed_bytes)


def placed(place: int, name: str) -> str:
    """What :func:`joined` calls a variable of the block at a place."""
    return name if name.startswith("=") else f"{place}:{name}"


def _share(variables: dict[str, Variable], variable: Variable) -> None:
    known = variables.get(variable.name)
    if known is None or known.num_bytes is None:
        variables[variable.name] = variable


def _looked_up(factor: Factor, assignment: Assignment) -> float:
    return float(factor.table[tuple(assignment[name] for name in factor.names)])
