"""What each model's weights take of a device group's memory, and what is left for its KV."""

from collections.abc import Sequence

from fabric.engine.executor import HostedModel
from fabric.engine.memory_plan import DeviceMemory
from fabric.engine.settings import ModelSettings
from fabric.scheduler.weights import ModelWeights


def weights_of(
    settings: Sequence[ModelSettings], hosted: Sequence[HostedModel], memory: DeviceMemory
) -> tuple[ModelWeights, ...]:
    """What each model's weights take, and what its KV may take beside them.

    A model's KV can have what is left when its own weights are on the device, and all that is
    pinned there with its guarantees; its ``max_share`` may be less.
    """
    least = [int(model.min_share * memory.num_slabs) for model in settings]
    pinned = [
        (memory.weight_slabs[i] + max(1, least[i])) * model.pinned
        for i, model in enumerate(settings)
    ]
    return tuple(
        ModelWeights(
            model.model,
            num_slabs=memory.weight_slabs[i],
            weight_bytes=hosted[i].weight_bytes,
            host_bytes=hosted[i].host_bytes,
            min_slabs=least[i],
            max_slabs=min(
                max(1, int(model.max_share * memory.num_slabs)),
                memory.num_slabs - memory.weight_slabs[i] - (sum(pinned) - pinned[i]),
            ),
            pinned=model.pinned,
            starts=model.starts,
        )
        for i, model in enumerate(settings)
    )
