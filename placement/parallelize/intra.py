"""How a model is best cut within its operators: whole plans, and the costs of pipeline stages."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from fabric.core.errors import ConfigError
from placement.parallelize.costs import Rates
from placement.parallelize.elimination import minimize
from placement.parallelize.factors import Assignment, Problem, joined
from placement.parallelize.graph import OperatorGraph, Workload
from placement.parallelize.layouts import mesh_axes
from placement.parallelize.milp import solve_milp
from placement.parallelize.stacks import (
    Stack,
    StackTemplates,
    block_rows,
    own_assignment,
    stack_rows,
)
from placement.parallelize.stage import MeshShape, StageCost
from placement.parallelize.template import TemplateChain
from placement.shape import ModelShape

Solver = Literal["auto", "elimination", "template", "milp"]

UNLIMITED = 1 << 60
SECONDS_PER_BYTE = 1e-21
"""So little that it only decides between plans of equal cost."""


@dataclass(frozen=True, slots=True)
class IntraPlan:
    """A model, or some of its layers, cut over a mesh.

    ``min_bytes`` is the least that any plan takes of the fullest device, ``bound_s`` is what no
    plan within the memory can go below: the plan's own seconds, unless a time limit came first.
    """

    model: str
    mesh: MeshShape
    solver: str
    cost: StageCost
    min_bytes: int
    bound_s: float

    @property
    def is_optimal(self) -> bool:
        """Whether no plan is better, up to rounding."""
        return self.cost.seconds <= self.bound_s * (1 + 1e-6)

    def table(self) -> str:
        """Operators and their strategies, a line each."""
        width = max(len(name) for name, _ in self.cost.strategies)
        lines = [f"{name:{width}}  {what}" for name, what in self.cost.strategies]
        head = (
            f"{self.model} on {self.mesh.slow}x{self.mesh.fast}: {self.cost.seconds * 1e6:.1f} µs, "
            f"{self.cost.bytes / 1e9:.3f} GB a device (at least {self.min_bytes / 1e9:.3f})"
        )
        return "\n".join([head, *lines])


@dataclass(frozen=True)
class IntraProblem:
    """Layers of a model that are to be cut over a mesh."""

    templates: StackTemplates
    stack: Stack
    mesh: MeshShape

    @classmethod
    def of(
        cls,
        shape: ModelShape,
        rates: Rates,
        mesh: MeshShape,
        workload: Workload,
        stack: Stack | None = None,
    ) -> "IntraProblem":
        """The whole model, or a stack of its layers.

        Raises:
            ConfigError: A phase, or the mesh, makes no sense.
        """
        check_workload(workload)
        check_mesh(mesh)
        graph = OperatorGraph(shape, mesh_axes(mesh, rates.device), workload, rates)
        return cls(StackTemplates(graph), stack or Stack(shape.num_layers), mesh)

    def joined(self) -> Problem:
        """The problem as variables and factors, for solvers that know no layers."""
        return joined(self.templates.blocks(self.stack))

    def min_bytes(self) -> int:
        """The least that any plan takes of the fullest device."""
        return min(chain.native.min_bytes() for chain in self._chains)

    def solve(
        self,
        memory_bytes: int | None = None,
        solver: Solver = "auto",
        limit_s: float = 600.0,
    ) -> IntraPlan:
        """The plan of the least weighted seconds.

        Args:
            memory_bytes: Of each device, for weights and KV; None: any.
            solver: ``elimination`` knows no memory budget, and is only right where the cheapest
                plan fits; ``template`` is exact with one; ``milp`` is HiGHS. ``auto`` is one of
                the first two.
            limit_s: After which ``milp`` gives the best plan so far.

        Raises:
            ConfigError: No plan fits; says how many bytes are missing. Or the solver can't tell.
        """
        min_bytes = self.min_bytes()
        budget = UNLIMITED if memory_bytes is None else memory_bytes
        if budget < min_bytes:
            raise ConfigError(
                f"{self._graph.shape.name} on a {self.mesh.slow}x{self.mesh.fast} mesh takes at "
                f"least {min_bytes} bytes of each device; memory_bytes is {memory_bytes}, which is "
                f"{min_bytes - budget} bytes short"
            )
        if solver == "auto":
            is_narrow = memory_bytes is None and len(self._graph.workload.phases) == 1
            solver = "elimination" if is_narrow else "template"
        bound_s = None
        if solver == "milp":
            assignment, bound_s = self._by_milp(memory_bytes, limit_s)
        elif solver == "template":
            assignment = self._by_template(budget)
        else:
            assignment = minimize(self.joined(), SECONDS_PER_BYTE)
        cost = self._cost(assignment)
        if cost.bytes > budget:
            raise ConfigError(
                f"elimination's plan takes {cost.bytes} bytes of each device; memory_bytes is "
                f"{memory_bytes}. Use the template solver, which knows a budget"
            )
        return IntraPlan(
            self._graph.shape.name,
            self.mesh,
            solver,
            cost,
            min_bytes,
            cost.seconds if bound_s is None else bound_s,
        )

    @property
    def _graph(self) -> OperatorGraph:
        return self.templates.graph

    @cached_property
    def _chains(self) -> tuple[TemplateChain, ...]:
        return self.templates.chains(self.stack)

    def _by_template(self, budget: int) -> dict[str, int]:
        best: dict[str, int] = {}
        limit = math.inf
        for chain in self._chains:
            seconds, _, ways = chain.native.solve(budget, limit)
            if ways:
                limit, best = seconds, chain.assignment(tuple(ways))
        return best

    def _by_milp(self, memory_bytes: int | None, limit_s: float) -> tuple[dict[str, int], float]:
        found = solve_milp(self.joined(), memory_bytes, limit_s)
        if found.assignment is None:
            raise ConfigError(f"limit_s is {limit_s}; HiGHS found no plan in that time")
        return found.assignment, found.seconds if found.is_optimal else found.bound

    def _cost(self, assignment: Assignment) -> StageCost:
        problem = self.joined()
        blocks = self.templates.blocks(self.stack)
        rows = [
            block_rows(block, own_assignment(block, place, assignment))
            for place, block in enumerate(blocks)
        ]
        phases = self._graph.workload.phases
        phase_s = tuple(
            problem.seconds_of(number, assignment) / phase.weight
            for number, phase in enumerate(phases)
        )
        return StageCost(
            problem.seconds(assignment),
            phase_s,
            problem.num_bytes(assignment),
            stack_rows(self.stack, rows),
        )


def check_mesh(mesh: MeshShape) -> None:
    """See that a mesh has devices.

    Raises:
        ConfigError: It has none.
    """
    if min(mesh.slow, mesh.fast) < 1:
        raise ConfigError(f"mesh is {mesh.slow}x{mesh.fast}; at least 1x1 is needed")


def check_workload(workload: Workload) -> None:
    """See that phases are such that plans can be compared by them.

    Raises:
        ConfigError: There are none or more than two, two of one name, or one without tokens,
            sequences or weight, or with more sequences than tokens.
    """
    phases = workload.phases
    names = [phase.name for phase in phases]
    if not 1 <= len(phases) <= 2 or len(set(names)) < len(names):
        raise ConfigError(f"phases are {names}; one or two of different names are needed")
    for phase in phases:
        if not 1 <= phase.num_sequences <= phase.num_tokens:
            raise ConfigError(
                f"phase {phase.name}: num_sequences is {phase.num_sequences}; 1 to num_tokens "
                f"({phase.num_tokens}) are allowed"
            )
        if phase.context < 0 or not 0 < phase.weight < math.inf:
            raise ConfigError(
                f"phase {phase.name}: context is {phase.context} and weight {phase.weight}; at "
                "least 0, and a positive number, are needed"
            )
    if workload.kv_tokens < 0:
        raise ConfigError(f"kv_tokens is {workload.kv_tokens}; at least 0 are needed")
