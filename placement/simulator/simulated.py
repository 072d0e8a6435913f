"""What an iteration-level simulation is of, and what it tells beside the outcome."""

from dataclasses import dataclass, field

from fabric.core.errors import ConfigError
from fabric.core.plan import ModelShare, ParallelConfig
from fabric.core.profile import Profile
from fabric.core.request import Objectives
from fabric.router.policy import RoutingName
from fabric.scheduler.settings import SchedulerConfig
from placement.cost.model import ModelCost
from placement.simulator.outcome import Outcome


@dataclass(frozen=True, slots=True)
class SimulatedModel:
    """A model that a group hosts, and what it costs there.

    ``believed`` is the profile that scheduler and router go by, if not the cost's: a device may
    be slower than when it was measured.
    """

    share: ModelShare
    cost: ModelCost
    max_model_len: int
    believed: Profile | None = None

    @property
    def profile(self) -> Profile:
        """What scheduler and router go by."""
        return self.believed or self.cost.profile


@dataclass(frozen=True, slots=True)
class SimulatedGroup:
    """A device group: ``memory_bytes`` of each device hold weights and KV, in slabs.

    ``host_bytes`` of the node hold parked KV of models whose profiles know the link; the weights
    that it may keep there are bounded by ``scheduler.residency``. ``slab_bytes`` None: chosen as
    a group would. No two requests share a prefix: ``prefix_cache`` only says whether blocks of
    ended requests are kept.
    """

    name: str
    parallel: ParallelConfig
    models: tuple[SimulatedModel, ...]
    memory_bytes: int
    host_bytes: int = 0
    block_size: int = 16
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    slab_bytes: int | None = None
    prefix_cache: bool = False

    def __post_init__(self) -> None:
        names = [model.share.model for model in self.models]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"group {self.name}: models are {names}; one of each is needed")
        for model in self.models:
            cost, stages = model.cost, self.parallel.pipeline
            counts = {len(cost.stage_shares), len(cost.weight_bytes), len(cost.kv_token_bytes)}
            if counts != {stages}:
                raise ConfigError(
                    f"group {self.name}: {model.share.model}'s cost is of {sorted(counts)} stages; "
                    f"the group has {stages}"
                )


@dataclass(frozen=True, slots=True)
class RouterModel:
    """How the router behaves: its policy, and the seconds that it adds to each request.

    ``objectives`` are one for each name of the trace, or none. At most ``max_inflight`` requests
    are in it, and ``max_waiting_cold`` of them wait for one model's weights.
    """

    routing: RoutingName = "predicted"
    objectives: tuple[Objectives, ...] = ()
    request_s: float = 0.0
    refuse_if_late: bool = False
    max_inflight: int = 1024
    max_waiting_cold: int = 256


@dataclass(frozen=True, slots=True)
class GroupFigures:
    """What a simulated group has done.

    Its devices computed for ``busy_s`` on average; weights were loaded ``num_loads`` times after
    the start. ``peak_slabs`` of ``num_slabs`` were in use by weights and KV at most.
    """

    name: str
    num_iterations: int
    num_tokens: int
    busy_s: float
    num_preemptions: int
    num_loads: int
    peak_slabs: int
    num_slabs: int


@dataclass(frozen=True, slots=True, eq=False)
class Detail:
    """An outcome, and each group's figures; the last request ended after ``span_s``."""

    outcome: Outcome
    groups: tuple[GroupFigures, ...]
    span_s: float

    def utilisation(self, group: int) -> float:
        """The share of its time that a group's devices computed in."""
        return self.groups[group].busy_s / self.span_s if self.span_s > 0.0 else 0.0
