"""What each mesh axis may do with an operator, and all combinations for a whole mesh."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np

from placement.parallelize.layouts import HIDDEN, TOKENS, WHOLE, Axes, LongArray, Spec, number_of
from placement.workload.trace import FloatArray

OUTPUT, CONTRACTION = 1, 2
"""How an axis may cut a matrix, unless it is whole on each device."""

BY_HEADS, BY_SEQUENCES = 1, 2
"""How an axis may cut the KV cache."""

WITHIN_EXPERTS, BY_EXPERTS = 1, 2
"""How an axis may cut a layer's experts."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What one axis does: the cuts of what comes in, what goes out, and what is kept."""

    name: str
    source: int
    target: int
    kept: int = WHOLE


REPLICATE = Choice("replicate", WHOLE, WHOLE)
BY_TOKENS = Choice("tokens", TOKENS, TOKENS)
SPLIT = Choice("hidden", HIDDEN, HIDDEN)
POINTWISE = (REPLICATE, BY_TOKENS, SPLIT)

MATMUL = (
    REPLICATE,
    BY_TOKENS,
    Choice("output", WHOLE, HIDDEN, OUTPUT),
    Choice("contraction + all-reduce", HIDDEN, WHOLE, CONTRACTION),
    Choice("contraction + reduce-scatter", HIDDEN, TOKENS, CONTRACTION),
)

ATTENTION = (
    REPLICATE,
    Choice("tokens, KV gathered", TOKENS, TOKENS),
    Choice("heads", HIDDEN, HIDDEN, BY_HEADS),
    Choice("sequences", TOKENS, TOKENS, BY_SEQUENCES),
)

EXPERTS_SENT = Choice("experts, tokens sent", TOKENS, TOKENS, BY_EXPERTS)
EXPERTS = (
    REPLICATE,
    BY_TOKENS,
    Choice("within experts + all-reduce", WHOLE, WHOLE, WITHIN_EXPERTS),
    Choice("within experts + reduce-scatter", WHOLE, TOKENS, WITHIN_EXPERTS),
    Choice("experts + all-reduce", WHOLE, WHOLE, BY_EXPERTS),
    Choice("experts + reduce-scatter", WHOLE, TOKENS, BY_EXPERTS),
    EXPERTS_SENT,
)

Strategy = tuple[Choice, ...]
"""A choice for each axis of a mesh."""


@dataclass(frozen=True, slots=True)
class Strategies:
    """All ways to run an operator on a mesh. ``sources`` and ``targets`` are specs' numbers."""

    every: tuple[Strategy, ...]
    labels: tuple[str, ...]
    sources: LongArray
    targets: LongArray

    @classmethod
    def of(cls, choices: tuple[Choice, ...], axes: Axes) -> "Strategies":
        """Every combination of choices over the axes."""
        every = tuple(product(choices, repeat=len(axes)))
        labels = tuple(_label(strategy, axes) for strategy in every)
        sources = np.array([number_of(choice.source for choice in each) for each in every])
        targets = np.array([number_of(choice.target for choice in each) for each in every])
        return cls(every, labels, sources, targets)

    def costs(self, seconds: Callable[[Strategy], float]) -> FloatArray:
        """Seconds of each strategy."""
        return np.array([seconds(strategy) for strategy in self.every])


@dataclass(frozen=True, slots=True)
class Storage:
    """All ways to keep something on a mesh: each axis' cut, and bytes of the fullest device."""

    every: tuple[Spec, ...]
    labels: tuple[str, ...]
    num_bytes: LongArray

    @classmethod
    def of(cls, axes: Axes, names: tuple[str, str], size: Callable[[Spec], int]) -> "Storage":
        """All combinations of not cutting and of cutting in the two named ways."""
        every = tuple(product(range(3), repeat=len(axes)))
        words = ("whole", *names)
        labels = tuple(_words([words[cut] for cut in kept], axes) for kept in every)
        return cls(every, labels, np.array([size(kept) for kept in every], np.int64))


def storage_table(
    strategies: Strategies, storage: Storage, may_slice: bool, is_turned: bool = False
) -> FloatArray:
    """Which strategy can work with what is kept how: 0, or infinity.

    Args:
        strategies: Rows of the table.
        storage: Columns of the table.
        may_slice: Whole things serve a strategy that needs a part only, as weights do.
        is_turned: Rows of what is kept are the operator's columns.
    """
    swapped = {WHOLE: WHOLE, OUTPUT: CONTRACTION, CONTRACTION: OUTPUT}
    table = np.full((len(strategies.every), len(storage.every)), np.inf)
    for row, strategy in enumerate(strategies.every):
        for column, kept in enumerate(storage.every):
            pairs = zip(strategy, kept, strict=True)
            cuts = [(each.kept, swapped[cut] if is_turned else cut) for each, cut in pairs]
            if all(used == cut or (may_slice and cut == WHOLE) for used, cut in cuts):
                table[row, column] = 0.0
    return table


def _label(strategy: Strategy, axes: Axes) -> str:
    return _words([choice.name for choice in strategy], axes)


def _words(words: list[str], axes: Axes) -> str:
    if len(axes) == 1 or len(set(words)) == 1:
        return words[0] if words else "alone"
    return "; ".join(f"{axis.name}: {word}" for axis, word in zip(axes, words, strict=True))
