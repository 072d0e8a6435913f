"""What runs, as the router sees it: models, device groups, their load and their requests."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from fabric.core.request import LoadReport, ModelCard, Timing
from fabric.core.weights import WeightState


class GroupState(StrEnum):
    """Whether a device group can take requests."""

    DOWN = "down"
    READY = "ready"
    DRAINING = "draining"
    STALLED = "stalled"


class ModelState(StrEnum):
    """Whether a model can answer."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """A served model, whether it can answer, and the device groups that serve it now."""

    card: ModelCard
    state: ModelState
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GroupStatus:
    """One device group; ``address`` is host:port, ``epoch`` grows with each restart.

    ``reason`` says why it is down, or what it waits for.
    """

    name: str
    address: str
    epoch: int
    state: GroupState
    models: tuple[str, ...] = ()
    load: LoadReport = field(default_factory=LoadReport)
    reason: str = ""


class RequestPhase(StrEnum):
    """What a request that has not ended is doing."""

    WAITING = "waiting"
    PREFILL = "prefill"
    DECODE = "decode"
    PREEMPTED = "preempted"
    SWAPPING_OUT = "swapping_out"
    SWAPPED = "swapped"
    SWAPPING_IN = "swapping_in"


@dataclass(frozen=True, slots=True)
class RequestStatus:
    """Where a live request is, why it was preempted, and what that has cost.

    ``rank`` is its place in the policy's order, the lowest first, and ``level`` its queue, where
    the policy has queues. ``num_blocks`` are on the device, ``num_parked_blocks`` in ``tier``.
    A preempted one has its KV on the device, but others go first. ``last_preemption`` says why it
    last had to give way, and to whom.
    """

    request_id: str
    model: str
    phase: RequestPhase
    tenant: str = ""
    priority: int = 0
    rank: tuple[float, ...] = ()
    level: int | None = None
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    num_blocks: int = 0
    num_parked_blocks: int = 0
    tier: str = ""
    last_preemption: str = ""
    timing: Timing = field(default_factory=Timing)


@dataclass(frozen=True, slots=True)
class Explanation:
    """Where requests in flight are, by device group and the policy's order.

    ``num_omitted`` more were not told of, and neither were those of the groups ``unanswered``,
    which are down or did not answer in time. ``timing.group`` of a request names its group.
    """

    requests: tuple[RequestStatus, ...]
    num_omitted: int = 0
    unanswered: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PolicyChange:
    """A device group's scheduling policy before and now; ``error`` says why it has not changed."""

    group: str
    before: str
    after: str
    error: str = ""


@dataclass(frozen=True, slots=True)
class Residence:
    """Where a model's weights are in one device group, ``elapsed_s`` after that was asked for.

    ``error`` says why they are not where they were to be.
    """

    group: str
    state: WeightState
    pinned: bool
    error: str = ""
    elapsed_s: float = 0.0


@dataclass(frozen=True, slots=True)
class FabricStatus:
    """What one router knows; ``outcomes`` counts ended requests by reason or status code name."""

    version: str
    uptime_s: float
    groups: tuple[GroupStatus, ...]
    num_inflight: int
    outcomes: Mapping[str, int]
    draining: bool
