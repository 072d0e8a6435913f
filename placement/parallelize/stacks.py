"""Consecutive layers of a model on a mesh, with or without its ends: problems and templates."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from placement.parallelize.draft import RESIDUAL
from placement.parallelize.factors import Assignment, Block, placed
from placement.parallelize.graph import TIED, OperatorGraph
from placement.parallelize.template import BlockTemplate, TemplateChain, template_of

Rows = tuple[tuple[str, str], ...]
"""(operator, strategy), for people."""


@dataclass(frozen=True, slots=True)
class Stack:
    """So many layers, and which ends of the model they have."""

    num_layers: int
    has_embedding: bool = True
    has_head: bool = True

    @property
    def num_blocks(self) -> int:
        """Blocks before the head."""
        return int(self.has_embedding) + 2 * self.num_layers


@dataclass(frozen=True)
class StackTemplates:
    """A model's blocks on one mesh, each drawn and eliminated once."""

    graph: OperatorGraph

    @cached_property
    def drawn(self) -> tuple[Block, Block, Block, Block]:
        """Embedding, attention, feed-forward and head."""
        graph = self.graph
        return graph.embedding(), graph.attention(), graph.feed_forward(), graph.head()

    def blocks(self, stack: Stack) -> list[Block]:
        """A stack's blocks in their order."""
        embedding, attention, feed_forward, head = self.drawn
        middle = [attention, feed_forward] * stack.num_layers
        return [embedding][: stack.has_embedding] + middle + [head][: stack.has_head]

    def chains(self, stack: Stack) -> tuple[TemplateChain, ...]:
        """The stack as chains, of which the best one counts.

        There are several if embedding and head share a weight: one for each way to keep it.
        """
        if not (stack.has_embedding and stack.has_head and self.graph.shape.is_tied):
            return (self._chain(stack, self._ends),)
        return tuple(self._chain(stack, ends) for ends in self._tied_ends)

    def _chain(self, stack: Stack, ends: tuple[BlockTemplate, BlockTemplate]) -> TemplateChain:
        embedding, head = ends
        order = [0] * stack.has_embedding + [1, 2] * stack.num_layers + [3] * stack.has_head
        return TemplateChain((embedding, *self._middle, head), tuple(order))

    @cached_property
    def _middle(self) -> tuple[BlockTemplate, BlockTemplate]:
        _, attention, feed_forward, _ = self.drawn
        return self._template(attention), self._template(feed_forward)

    @cached_property
    def _ends(self) -> tuple[BlockTemplate, BlockTemplate]:
        embedding, _, _, head = self.drawn
        return self._template(embedding), self._template(head)

    @cached_property
    def _tied_ends(self) -> tuple[tuple[BlockTemplate, BlockTemplate], ...]:
        embedding, _, _, head = self.drawn
        phases = self.graph.workload.phases
        (shared,) = (each for each in embedding.variables if each.name == TIED)
        return tuple(
            (
                template_of(embedding, phases, {TIED: kept}),
                template_of(head, phases, {TIED: kept}, has_fixed_bytes=False),
            )
            for kept in range(shared.size)
        )

    def _template(self, block: Block) -> BlockTemplate:
        return template_of(block, self.graph.workload.phases)


def block_rows(block: Block, assignment: Assignment) -> Rows:
    """What a block's operators do, and how its weights and KV are kept."""
    return tuple(
        (variable.name.lstrip("="), variable.labels[assignment[variable.name]])
        for variable in block.variables
        if not variable.name.startswith(RESIDUAL)
    )


def stack_rows(stack: Stack, rows: Sequence[Rows]) -> Rows:
    """Rows of all blocks as those of the stack: layers that do the same stand together."""
    start = int(stack.has_embedding)
    middle = rows[start : stack.num_blocks]
    layers = Counter(zip(middle[::2], middle[1::2], strict=True))
    described: list[tuple[str, str]] = [*rows[0]] if stack.has_embedding else []
    for (attention, feed_forward), count in layers.items():
        title = f"{count} layers" if count > 1 else "1 layer"
        described += [(f"{title}: {name}", what) for name, what in (*attention, *feed_forward)]
    return (*described, *(rows[-1] if stack.has_head else ()))


def own_assignment(block: Block, place: int, assignment: Assignment) -> dict[str, int]:
    """A block's part of a joined problem's assignment, without what comes in."""
    return {
        variable.name: assignment[name]
        for variable in block.variables
        if (name := placed(place, variable.name)) in assignment
    }
