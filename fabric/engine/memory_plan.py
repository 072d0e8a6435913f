"""How a device's memory is cut into slabs, and each slab into blocks of the model that has it."""

from collections.abc import Sequence
from dataclasses import dataclass

from fabric.core.errors import ConfigError
from fabric.engine.settings import WorkerSettings


@dataclass(frozen=True, slots=True)
class ModelBytes:
    """What a model takes on the rank that it takes most on: its weights, and one KV block."""

    model: str
    weight_bytes: int
    block_bytes: int


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """The one budget of each device of a group, the same on all of them.

    ``num_slabs`` of ``slab_bytes`` are shared by weights and KV of all models. Weights take whole
    slabs' worth, ``weight_slabs`` by model; a slab of KV holds ``blocks_per_slab`` of its model's
    blocks: block ``i`` is in slab ``i // blocks_per_slab``.
    """

    slab_bytes: int
    num_slabs: int
    weight_slabs: tuple[int, ...]
    blocks_per_slab: tuple[int, ...]


def plan_memory(settings: WorkerSettings, models: Sequence[ModelBytes]) -> DeviceMemory:
    """Cut the memory that the settings allow.

    Raises:
        ConfigError: It does not hold the weights and one block of each model that is alone there.
    """
    raise NotImplementedError
