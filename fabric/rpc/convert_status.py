"""What runs, as protobuf messages and as values, both ways."""

from typing import Any

from fabric.core.request import LoadReport, ModelCard
from fabric.core.status import FabricStatus, GroupState, GroupStatus, ModelState, ModelStatus
from fabric.rpc.convert_output import duration, seconds
from fabric.rpc.convert_weights import model_load_from_proto, model_load_to_proto
from fabric.rpc.v1 import control_pb2, inference_pb2

_TO_MODEL_STATE = {
    ModelState.LOADING: inference_pb2.MODEL_STATE_LOADING,
    ModelState.READY: inference_pb2.MODEL_STATE_READY,
    ModelState.DRAINING: inference_pb2.MODEL_STATE_DRAINING,
}
_FROM_MODEL_STATE = {number: state for state, number in _TO_MODEL_STATE.items()}

_TO_GROUP_STATE = {
    GroupState.DOWN: control_pb2.DEVICE_GROUP_STATE_DOWN,
    GroupState.READY: control_pb2.DEVICE_GROUP_STATE_READY,
    GroupState.DRAINING: control_pb2.DEVICE_GROUP_STATE_DRAINING,
    GroupState.STALLED: control_pb2.DEVICE_GROUP_STATE_STALLED,
}
_FROM_GROUP_STATE = {number: state for state, number in _TO_GROUP_STATE.items()}

# Fields of a LoadReport that have the same name in the message.
_FIGURES = (
    "num_running",
    "num_waiting",
    "num_free_blocks",
    "num_blocks",
    "num_cached_blocks",
    "num_steps",
    "num_tokens",
    "num_preemptions",
    "prefix_hit_tokens",
    "prefix_query_tokens",
    "policy",
    "num_swapped",
    "num_host_blocks",
    "num_disk_blocks",
    "swapped_out_bytes",
    "swapped_in_bytes",
    "num_failed_transfers",
    "num_recomputed_tokens",
    "control_bytes",
    "num_collectives",
    "collective_bytes",
    "slab_bytes",
    "num_slabs",
    "num_free_slabs",
    "fragmented_bytes",
    "num_superfluous_tokens",
)
# Fields of a LoadReport that are durations in the message; absent there when 0.
_TIMES = {
    "stalled_s": "stalled",
    "stall_s": "stall_time",
    "control_s": "control_time",
    "execute_s": "execute_time",
    "collective_s": "collective_time",
}


def model_to_proto(status: ModelStatus) -> inference_pb2.Model:
    """Write a served model; where its tokenizer lies stays with the server."""
    card = status.card
    return inference_pb2.Model(
        id=card.model,
        state=_TO_MODEL_STATE[status.state],
        source=card.source,
        architecture=card.architecture,
        dtype=card.dtype,
        max_model_len=card.max_model_len,
        vocab_size=card.vocab_size,
        num_parameters=card.num_parameters,
        quantization=card.quantization,
        groups=status.groups,
    )


def model_from_proto(message: inference_pb2.Model) -> ModelStatus:
    """Read a served model; a state that we don't know counts as loading."""
    card = ModelCard(
        model=message.id,
        tokenizer_path="",
        max_model_len=message.max_model_len,
        vocab_size=message.vocab_size,
        dtype=message.dtype,
        architecture=message.architecture,
        num_parameters=message.num_parameters,
        source=message.source,
        quantization=message.quantization or "none",
    )
    state = _FROM_MODEL_STATE.get(message.state, ModelState.LOADING)
    return ModelStatus(card, state, tuple(message.groups))


def fabric_status_to_proto(status: FabricStatus) -> control_pb2.StatusResponse:
    """Write what runs."""
    return control_pb2.StatusResponse(
        version=status.version,
        uptime=duration(status.uptime_s),
        groups=map(_group_to_proto, status.groups),
        num_inflight=status.num_inflight,
        outcomes=dict(status.outcomes),
        draining=status.draining,
    )


def fabric_status_from_proto(message: control_pb2.StatusResponse) -> FabricStatus:
    """Read what runs."""
    return FabricStatus(
        version=message.version,
        uptime_s=seconds(message.uptime),
        groups=tuple(map(_group_from_proto, message.groups)),
        num_inflight=message.num_inflight,
        outcomes=dict(message.outcomes),
        draining=message.draining,
    )


def _group_to_proto(group: GroupStatus) -> control_pb2.DeviceGroupStatus:
    load = group.load
    times: dict[str, Any] = {
        name: duration(time_s)
        for field, name in _TIMES.items()
        if (time_s := getattr(load, field)) > 0
    }
    return control_pb2.DeviceGroupStatus(
        name=group.name,
        address=group.address,
        epoch=group.epoch,
        state=_TO_GROUP_STATE[group.state],
        models=group.models,
        reason=group.reason,
        hosted=map(model_load_to_proto, load.models),
        **{name: getattr(load, name) for name in _FIGURES},
        **times,
    )


def _group_from_proto(message: control_pb2.DeviceGroupStatus) -> GroupStatus:
    figures: dict[str, Any] = {name: getattr(message, name) for name in _FIGURES}
    times: dict[str, Any] = {
        field: seconds(getattr(message, name)) for field, name in _TIMES.items()
    }
    hosted = tuple(map(model_load_from_proto, message.hosted))
    return GroupStatus(
        name=message.name,
        address=message.address,
        epoch=message.epoch,
        state=_FROM_GROUP_STATE.get(message.state, GroupState.DOWN),
        models=tuple(message.models),
        load=LoadReport(models=hosted, **figures, **times),
        reason=message.reason,
    )
