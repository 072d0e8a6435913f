"""Serves a trace by the fabric's own scheduler, KV accounting and routing, on a virtual clock."""

from collections.abc import Sequence

from placement.simulator.outcome import Outcome
from placement.simulator.sim_engine import Observe
from placement.simulator.sim_fabric import SimulatedFabric
from placement.simulator.simulated import (
    Detail,
    GroupFigures,
    RouterModel,
    SimulatedGroup,
    SimulatedModel,
)
from placement.workload.trace import Trace

__all__ = [
    "Detail",
    "GroupFigures",
    "RouterModel",
    "SimulatedGroup",
    "SimulatedModel",
    "simulate_fabric",
    "simulate_in_detail",
]


def simulate_fabric(
    groups: Sequence[SimulatedGroup], trace: Trace, router: RouterModel, seed: int = 0
) -> Outcome:
    """Serve a trace.

    Args:
        groups: What serves it.
        trace: The requests; names are those of the groups' models.
        router: How requests are sent to groups; objectives are one for each name of the trace.
        seed: Of all that is drawn: equal seeds give equal outcomes.

    Raises:
        ConfigError: A model of the trace is in no group, or a group's models don't fit.
    """
    return simulate_in_detail(groups, trace, router, seed).outcome


def simulate_in_detail(
    groups: Sequence[SimulatedGroup],
    trace: Trace,
    router: RouterModel,
    seed: int = 0,
    observe: Observe | None = None,
) -> Detail:
    """Serve a trace as :func:`simulate_fabric` does, and tell what each group has done.

    Args:
        groups: What serves it.
        trace: The requests; names are those of the groups' models.
        router: How requests are sent to groups; objectives are one for each name of the trace.
        seed: Of all that is drawn: equal seeds give equal outcomes.
        observe: Is shown each iteration as it is scheduled, and when.

    Raises:
        ConfigError: A model of the trace is in no group, or a group's models don't fit.
    """
    return SimulatedFabric(groups, trace, router, seed, observe).run()
