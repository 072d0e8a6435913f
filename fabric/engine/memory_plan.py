"""How a device's memory is cut into slabs, and each slab into blocks of the model that has it."""

from collections.abc import Sequence
from dataclasses import dataclass

from fabric.core.errors import ConfigError
from fabric.engine.settings import WorkerSettings

PAGE_BYTES = 4096
# Blocks begin at multiples of this. Block tables have 32 bits for each, which bounds the memory.
STEP_BYTES = 64
_MAX_MEMORY_BYTES = 2**31 * STEP_BYTES
# Slabs that are chosen hold so many of the largest blocks, and are large enough to be worth it.
_LEAST_BLOCKS, _MOST_BLOCKS = 4, 16
_LEAST_SLAB_BYTES = 256 * 2**10


@dataclass(frozen=True, slots=True)
class ModelBytes:
    """What a model takes on the rank that it takes most on: its weights, and one KV block."""

    model: str
    weight_bytes: int
    block_bytes: int

    @property
    def stride_bytes(self) -> int:
        """What a block takes of a slab."""
        return rounded_up(self.block_bytes, STEP_BYTES)


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

    @property
    def max_kv_slabs(self) -> int:
        """Slabs that KV can have at one time; those that it gets are numbered below.

        Whoever has KV has its weights there as well, and slabs are lent lowest first.
        """
        return self.num_slabs - min(self.weight_slabs)

    def max_num_blocks(self, model: int) -> int:
        """A model's blocks where no other has anything on the device, weights included."""
        return (self.num_slabs - self.weight_slabs[model]) * self.blocks_per_slab[model]


def plan_memory(settings: WorkerSettings, models: Sequence[ModelBytes]) -> DeviceMemory:
    """Cut the memory that the settings allow.

    A model that is alone, and has ``kv_cache_bytes`` beside its weights, gets one slab of them,
    so that it has exactly the blocks which fit in there. Else slabs are of a size that wastes
    little after the last whole block, whichever model has them.

    Args:
        settings: The memory, and which models are pinned.
        models: What each of ``settings.models`` takes, in their order.

    Raises:
        ConfigError: It does not hold the weights of each model, beside those of the pinned ones,
            and a slab; or a slab does not hold a block. Says what is there and what is needed.
    """
    _check_blocks(settings, models)
    memory = _plan(settings, models)
    _check_fit(settings, models, memory)
    return memory


def rounded_up(num_bytes: int, unit: int) -> int:
    """The least multiple of the unit that is not less."""
    return -(-num_bytes // unit) * unit


def _plan(settings: WorkerSettings, models: Sequence[ModelBytes]) -> DeviceMemory:
    if len(models) == 1 and settings.memory_bytes is None and settings.slab_bytes is None:
        num_blocks = settings.kv_cache_bytes // models[0].block_bytes
        slab_bytes = rounded_up(num_blocks * models[0].stride_bytes, PAGE_BYTES)
        weights = -(-models[0].weight_bytes // slab_bytes)
        return DeviceMemory(slab_bytes, weights + 1, (weights,), (num_blocks,))
    slab_bytes = _slab_bytes(settings, models)
    weight_slabs = tuple(-(-model.weight_bytes // slab_bytes) for model in models)
    if settings.memory_bytes is None:
        kv_slabs = max(len(models), -(-settings.kv_cache_bytes // slab_bytes))
        num_slabs = sum(weight_slabs) + kv_slabs
    else:
        num_slabs = settings.memory_bytes // slab_bytes
    blocks_per_slab = tuple(slab_bytes // model.stride_bytes for model in models)
    return DeviceMemory(slab_bytes, num_slabs, weight_slabs, blocks_per_slab)


def _slab_bytes(settings: WorkerSettings, models: Sequence[ModelBytes]) -> int:
    if settings.slab_bytes is not None:
        return rounded_up(settings.slab_bytes, PAGE_BYTES)
    largest = max(model.stride_bytes for model in models)
    # Small blocks come in more than 4 to 16, so that there are not too many slabs to count.
    scale = max(1, -(-_LEAST_SLAB_BYTES // (_LEAST_BLOCKS * largest)))
    counts = range(_LEAST_BLOCKS * scale, _MOST_BLOCKS * scale + 1)
    sizes = [rounded_up(count * largest, PAGE_BYTES) for count in counts]
    # Slabs that are large beside the memory would leave the models nothing to share.
    budget = settings.memory_bytes or settings.kv_cache_bytes
    fine = [size for size in sizes if size * len(models) * _LEAST_BLOCKS <= budget]
    return min(fine or sizes[:1], key=lambda size: (_waste(size, models), size))


def _waste(slab_bytes: int, models: Sequence[ModelBytes]) -> float:
    """The part of a slab that holds no whole block, summed over the models."""
    return sum(slab_bytes % model.stride_bytes for model in models) / slab_bytes


def _check_blocks(settings: WorkerSettings, models: Sequence[ModelBytes]) -> None:
    """A block must fit into whatever bounds it."""
    largest = max(models, key=lambda model: model.stride_bytes)
    bounds = {"slab_bytes": settings.slab_bytes}
    if settings.memory_bytes is None:
        bounds["kv_cache_bytes"] = settings.kv_cache_bytes
    for name, num_bytes in bounds.items():
        if num_bytes is not None and num_bytes < largest.block_bytes:
            raise ConfigError(
                f"{name} is {num_bytes}; one block of {largest.model} needs {largest.block_bytes}"
            )


def _check_fit(
    settings: WorkerSettings, models: Sequence[ModelBytes], memory: DeviceMemory
) -> None:
    there_bytes = memory.num_slabs * memory.slab_bytes
    if there_bytes > _MAX_MEMORY_BYTES:
        raise ConfigError(
            f"memory is {there_bytes} bytes on each device; at most {_MAX_MEMORY_BYTES} are usable"
        )
    is_pinned = [model.pinned for model in settings.models]
    pinned_slabs = sum(
        slabs for slabs, pinned in zip(memory.weight_slabs, is_pinned, strict=True) if pinned
    )
    for model, slabs, pinned in zip(models, memory.weight_slabs, is_pinned, strict=True):
        others = pinned_slabs - slabs if pinned else pinned_slabs
        if slabs + others + 1 > memory.num_slabs:
            beside = f", {others * memory.slab_bytes} for pinned models" if others else ""
            raise ConfigError(
                f"memory is {settings.memory_bytes}, {memory.num_slabs} slabs of "
                f"{memory.slab_bytes} bytes; {model.model} needs {model.weight_bytes} bytes for "
                f"its weights{beside} and a slab for its KV"
            )
