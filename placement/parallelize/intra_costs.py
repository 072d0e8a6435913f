"""What pipeline stages cost, each cut over its mesh as well as it can be."""

import math
from collections.abc import Sequence

import numpy as np

from fabric.core.errors import ConfigError
from placement import _native
from placement.devices import DeviceType
from placement.parallelize.costs import Rates
from placement.parallelize.graph import OperatorGraph, Workload
from placement.parallelize.intra import check_mesh, check_workload
from placement.parallelize.layouts import mesh_axes
from placement.parallelize.stacks import Stack, StackTemplates, block_rows, stack_rows
from placement.parallelize.stage import MeshShape, StageCost
from placement.parallelize.template import BlockTemplate, TemplateChain
from placement.shape import ModelShape

NUM_BUCKETS = 32
"""Ranges of bytes, after each block, of which one way to lie in it is followed."""


class IntraCosts:
    """Ways to run consecutive layers on a mesh, by their seconds and bytes.

    Layers are alike, so stages of as many layers, with the same ends, share their options. Those
    of the whole model are exact. A sweep over the layers finds those of all other stages that
    begin alike: the cheapest and the smallest option are exact, what lies between misses the best
    by 1 % at most on Llama's shapes, and mostly by nothing.
    """

    def __init__(
        self,
        shape: ModelShape,
        device: DeviceType,
        workload: Workload,
        *,
        memory_bytes: int | None = None,
        max_options: int = 8,
        rates: Rates | None = None,
    ) -> None:
        """Costs of a model's stages.

        Args:
            shape: The model.
            device: Of all meshes; ``inside`` connects those of a mesh's row, ``outside`` rows.
            workload: What is served.
            memory_bytes: Of each device, for weights and KV; None: all that it has.
            max_options: Of a stage, spread over bytes from the smallest to the fastest.
            rates: What the device reaches; None: the usual shares of its peaks.

        Raises:
            ConfigError: A phase makes no sense, or fewer than two options are asked for.
        """
        check_workload(workload)
        if max_options < 2:
            raise ConfigError(f"max_options is {max_options}; at least 2 are needed")
        self._shape = shape
        self._workload = workload
        self._rates = rates or Rates(device)
        self._memory_bytes = device.memory_bytes if memory_bytes is None else memory_bytes
        self._max_options = max_options
        self._templates: dict[MeshShape, StackTemplates] = {}
        self._swept: dict[tuple[MeshShape, bool], TemplateChain] = {}
        self._options: dict[tuple[MeshShape, Stack], tuple[StageCost, ...]] = {}

    @property
    def num_layers(self) -> int:
        """Layers of the model; the first stage has the embedding too, the last one the head."""
        return self._shape.num_layers

    def options(self, first: int, end: int, mesh: MeshShape) -> tuple[StageCost, ...]:
        """Ways to run layers ``first`` to ``end`` (not included) on a mesh, the smallest first.

        None is both slower and larger than another; empty if none fits a device.

        Raises:
            ConfigError: There are no such layers, or the mesh has no devices.
        """
        if not 0 <= first < end <= self.num_layers:
            raise ConfigError(
                f"layers {first} to {end} are none of the {self.num_layers} of {self._shape.name}"
            )
        check_mesh(mesh)
        stack = Stack(end - first, first == 0, end == self.num_layers)
        key = mesh, stack
        if key not in self._options:
            self._options[key] = self._front(mesh, stack)
        return self._options[key]

    def _front(self, mesh: MeshShape, stack: Stack) -> tuple[StageCost, ...]:
        if stack.has_embedding and stack.has_head:
            return self._exact_front(mesh, stack)
        chain = self._swept_chain(mesh, stack)
        tail = len(chain.templates) - 1 if stack.has_head else -1
        order = (*chain.order[: stack.num_blocks], *([tail] * stack.has_head))
        plans = chain.native.front(stack.num_blocks, tail, self._max_options)
        return tuple(_cost(plan, chain.templates, order, stack) for plan in plans)

    def _exact_front(self, mesh: MeshShape, stack: Stack) -> tuple[StageCost, ...]:
        """Options of the whole model, each the best within its bytes."""
        chains = self._templates_of(mesh).chains(stack)
        min_bytes = min(chain.native.min_bytes() for chain in chains)
        if min_bytes > self._memory_bytes:
            return ()
        fastest = _cheapest(chains, self._memory_bytes, stack)
        growth = (fastest.bytes / min_bytes) ** (1 / (self._max_options - 1))
        options = [fastest]
        for place in reversed(range(self._max_options - 1)):
            budget = max(min_bytes, int(min_bytes * growth**place))
            if budget < options[-1].bytes:
                options.append(_cheapest(chains, budget, stack))
        return tuple(reversed(options))

    def _swept_chain(self, mesh: MeshShape, stack: Stack) -> TemplateChain:
        """All layers, beginning as the stack does."""
        key = mesh, stack.has_embedding
        if key not in self._swept:
            whole = Stack(self.num_layers, stack.has_embedding, has_head=False)
            (chain,) = self._templates_of(mesh).chains(whole)
            chain.native.sweep(self._memory_bytes, NUM_BUCKETS)
            self._swept[key] = chain
        return self._swept[key]

    def _templates_of(self, mesh: MeshShape) -> StackTemplates:
        if mesh not in self._templates:
            axes = mesh_axes(mesh, self._rates.device)
            graph = OperatorGraph(self._shape, axes, self._workload, self._rates)
            self._templates[mesh] = StackTemplates(graph)
        return self._templates[mesh]


def _cheapest(chains: Sequence[TemplateChain], budget: int, stack: Stack) -> StageCost:
    """The cheapest of several chains within a budget that one of them fits."""
    limit, best = math.inf, None
    for chain in chains:
        plan = chain.native.solve(budget, limit)
        if plan[2]:
            limit, best = plan[0], (plan, chain)
    assert best is not None
    plan, chain = best
    return _cost(plan, chain.templates, chain.order, stack)


def _cost(
    plan: "_native.ChainPlan",
    templates: Sequence[BlockTemplate],
    order: Sequence[int],
    stack: Stack,
) -> StageCost:
    seconds, num_bytes, ways = plan
    steps = [(templates[number], way) for number, way in zip(order, ways, strict=True)]
    phase_s = np.sum([template.phase_s[:, way] for template, way in steps], axis=0)
    rows = [block_rows(template.block, template.assignment(way)) for template, way in steps]
    return StageCost(seconds, tuple(phase_s.tolist()), num_bytes, stack_rows(stack, rows))
