"""A block of the operator graph in the making."""

from collections.abc import Callable

import numpy as np

from placement.parallelize.costs import Costs, Matrix
from placement.parallelize.factors import Block, Factor, Variable
from placement.parallelize.layouts import (
    Activation,
    Axes,
    Features,
    Spec,
    num_cuts,
    reshard_table,
)
from placement.parallelize.stage import Phase
from placement.parallelize.strategies import (
    CONTRACTION,
    MATMUL,
    OUTPUT,
    POINTWISE,
    Storage,
    Strategies,
    Strategy,
    storage_table,
)

RESIDUAL = "residual"
WEIGHT_WORDS = ("by output", "by contraction")


class Draft:
    """Collects a block's variables and factors."""

    def __init__(self, axes: Axes, phases: tuple[Phase, ...], costs: Costs) -> None:
        self.axes = axes
        self.costs = costs
        self._names = [phase.name for phase in phases]
        self.phases = [PhaseDraft(self, number, phase) for number, phase in enumerate(phases)]
        self.variables: list[Variable] = []
        self.factors: list[Factor] = []
        self.storages: dict[str, Storage] = {}

    def keep(self, name: str, storage: Storage) -> None:
        """Something that stays on the devices."""
        self.storages[name] = storage
        self.variables.append(Variable(name, storage.labels, None, storage.num_bytes))

    def keep_weights(self, name: str, matrix: Matrix) -> None:
        """A weight that stays on the devices."""

        def size(kept: Spec) -> int:
            num_inputs = num_cuts(kept, self.axes, CONTRACTION)
            return matrix.bytes_on(num_inputs, num_cuts(kept, self.axes, OUTPUT))

        self.keep(name, Storage.of(self.axes, WEIGHT_WORDS, size))

    def block(self, name: str, source: str | None, target: str | None, fixed_bytes: int) -> Block:
        """What was drawn, between the operators that stand for what comes in and goes out."""
        sources, targets = (
            tuple(name_of(end, phase) for phase in self._names) if end else ()
            for end in (source, target)
        )
        variables, factors = tuple(self.variables), tuple(self.factors)
        return Block(name, variables, factors, sources, targets, fixed_bytes)


class PhaseDraft:
    """Draws one phase of a block."""

    def __init__(self, draft: Draft, number: int, phase: Phase) -> None:
        self.phase = phase
        self._draft = draft
        self._number = number
        self._kinds: dict[str, Strategies] = {}
        self._plain = Strategies.of(POINTWISE, draft.axes)

    def node(
        self, name: str, strategies: Strategies, seconds: Callable[[Strategy], float] | None
    ) -> str:
        """One more operator, and what it costs; None: nothing."""
        called = name_of(name, self.phase.name)
        self._kinds[called] = strategies
        self._draft.variables.append(Variable(called, strategies.labels, self._number))
        if seconds is not None:
            table = strategies.costs(seconds) * self.phase.weight
            self._draft.factors.append(Factor((called,), table))
        return called

    def pointwise(self, name: str, seconds: Callable[[Strategy], float] | None) -> str:
        """An operator whose result lies as what it takes."""
        return self.node(name, self._plain, seconds)

    def edge(self, source: str, target: str, activation: Activation) -> None:
        """What one operator makes, and another one takes."""
        table = reshard_table(activation, self._draft.axes) * self.phase.weight
        rows, columns = self._kinds[source].targets, self._kinds[target].sources
        self._draft.factors.append(Factor((source, target), table[np.ix_(rows, columns)]))

    def use(self, user: str, kept: str, may_slice: bool = True, is_turned: bool = False) -> None:
        """Let an operator run only on what is kept in some ways; see ``storage_table``."""
        storage = self._draft.storages[kept]
        table = storage_table(self._kinds[user], storage, may_slice, is_turned)
        self._draft.factors.append(Factor((user, kept), table))

    def matmul(self, name: str, matrix: Matrix) -> str:
        """All tokens' rows times a weight."""
        costs, rows = self._draft.costs, self.phase.num_tokens
        kinds = Strategies.of(MATMUL, self._draft.axes)
        called = self.node(name, kinds, lambda each: costs.matmul_s(each, rows, matrix))
        self.use(called, f"{name} weights")
        return called

    def enter(self, norm: str, hidden: Features) -> tuple[str, str]:
        """What comes in, and its norm."""
        costs, whole = self._draft.costs, Activation(self.phase.num_tokens, hidden)
        x = self.pointwise(RESIDUAL, None)
        normed = self.pointwise(norm, lambda each: costs.norm_s(each, whole))
        self.edge(x, normed, whole)
        return x, normed

    def add(self, name: str, terms: tuple[str, str], hidden: Features) -> None:
        """The sum of two."""
        costs, whole = self._draft.costs, Activation(self.phase.num_tokens, hidden)
        total = self.pointwise(name, lambda each: costs.pointwise_s(each, whole, 3))
        for term in terms:
            self.edge(term, total, whole)


def name_of(operator: str, phase: str) -> str:
    """What the variable of an operator in a phase is called."""
    return f"{operator} ({phase})"
