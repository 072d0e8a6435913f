"""What a model costs on a device group: the one form that all sources of costs come to."""

from dataclasses import dataclass
from typing import Protocol

from fabric.core.profile import Profile
from placement.devices import GroupConfig


@dataclass(frozen=True, slots=True)
class ModelCost:
    """What one model costs on one kind of device group.

    ``profile`` has the seconds of whole iterations, from the first stage's start to the last
    stage's end, without ``overhead_s``, which each iteration takes besides: scheduling, building
    the batch, sampling. ``stage_shares`` are the pipeline stages' shares of an iteration; they sum
    to 1. ``weight_bytes`` and ``kv_token_bytes`` (KV of one token) are those of a device of each
    stage. ``load_s`` is from host memory to the devices, ``fetch_s`` from disk to host memory.
    """

    profile: Profile
    stage_shares: tuple[float, ...]
    weight_bytes: tuple[int, ...]
    kv_token_bytes: tuple[int, ...]
    overhead_s: float = 0.0
    load_s: float = 0.0
    fetch_s: float = 0.0


class CostModel(Protocol):
    """Knows what models cost on device groups."""

    def cost(self, model: str, config: GroupConfig) -> ModelCost | None:
        """What the model costs there; None if it can't be cut so.

        Raises:
            ConfigError: The model, or the device type, is not known.
        """
        ...
