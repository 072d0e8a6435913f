"""Placement as data: which models run on which devices, cut how."""

from dataclasses import dataclass, field
from typing import Literal

from fabric.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ParallelConfig:
    """How a model is cut over a device group: pipeline stages times tensor ranks."""

    pipeline: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        for name in ("pipeline", "tensor"):
            if getattr(self, name) < 1:
                raise ConfigError(f"parallel.{name} is {getattr(self, name)}; at least 1 is needed")

    @property
    def num_devices(self) -> int:
        """Devices that the group needs."""
        return self.pipeline * self.tensor


@dataclass(frozen=True, slots=True)
class ModelShare:
    """What a model may take of the group that hosts it.

    While it is resident, ``min_share`` of the device's slabs are kept for its KV, and it gets
    ``max_share`` of them at most. Service is shared in proportion to ``weight``. ``pinned``
    weights stay on the device; ``starts`` is where they are at first.
    """

    model: str
    min_share: float = 0.0
    max_share: float = 1.0
    weight: float = 1.0
    pinned: bool = False
    starts: Literal["resident", "host", "cold"] = "resident"


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """One device group: its devices, how models are cut over them, and which ones it hosts.

    ``options`` is all else that its configuration says, in one canonical text: groups whose
    options differ are different groups. ``instance`` is what it is called while it runs, if that
    differs from its name: two groups of one name may serve for a while, when one replaces the
    other.
    """

    name: str
    parallel: ParallelConfig
    models: tuple[ModelShare, ...]
    options: str = ""
    instance: str = field(default="", compare=False)

    @property
    def running_name(self) -> str:
        """What it is called while it runs."""
        return self.instance or self.name

    @property
    def model_ids(self) -> tuple[str, ...]:
        """The models that it hosts."""
        return tuple(share.model for share in self.models)


@dataclass(frozen=True, slots=True)
class PlacementPlan:
    """Which device groups there are, and where each model's weights come from.

    Source: AlpaServe (Li et al., OSDI 2023), section 4.2.
    """

    groups: tuple[GroupPlan, ...]
    sources: tuple[tuple[str, str], ...] = ()
