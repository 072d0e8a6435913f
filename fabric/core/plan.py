"""Placement as data: which models run on which devices, cut how."""

from dataclasses import dataclass

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
