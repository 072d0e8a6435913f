"""What runs, as the router sees it: models, device groups and their load."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from fabric.core.request import LoadReport, ModelCard


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


@dataclass(frozen=True, slots=True)
class FabricStatus:
    """What one router knows; ``outcomes`` counts ended requests by reason or status code name."""

    version: str
    uptime_s: float
    groups: tuple[GroupStatus, ...]
    num_inflight: int
    outcomes: Mapping[str, int]
    draining: bool
