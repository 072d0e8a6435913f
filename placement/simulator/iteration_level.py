"""Serves a trace by the fabric's own scheduler, KV accounting and routing, on a virtual clock."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from fabric.core.plan import ModelShare, ParallelConfig
from fabric.core.request import Objectives
from fabric.router.policy import RoutingName
from fabric.scheduler.settings import SchedulerConfig
from placement.cost.model import ModelCost
from placement.simulator.outcome import Outcome
from placement.workload.trace import Trace


@dataclass(frozen=True, slots=True)
class SimulatedModel:
    """A model that a group hosts, and what it costs there."""

    share: ModelShare
    cost: ModelCost
    max_model_len: int


@dataclass(frozen=True, slots=True)
class SimulatedGroup:
    """A device group: ``memory_bytes`` of each device hold weights and KV.

    ``host_bytes`` of the node hold parked KV and weights that are not on the devices.
    """

    name: str
    parallel: ParallelConfig
    models: tuple[SimulatedModel, ...]
    memory_bytes: int
    host_bytes: int = 0
    block_size: int = 16
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)


@dataclass(frozen=True, slots=True)
class RouterModel:
    """How the router behaves: its policy, and the seconds that it adds to each request."""

    routing: RoutingName = "predicted"
    objectives: tuple[Objectives, ...] = ()
    request_s: float = 0.0
    refuse_if_late: bool = False


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
    raise NotImplementedError
