"""Where weights are, as protobuf messages and as values, both ways."""

from typing import Any

from fabric.core.errors import InvalidRequest
from fabric.core.request import ModelLoad
from fabric.core.status import Residence
from fabric.core.weights import WeightState
from fabric.rpc.convert_output import duration, seconds
from fabric.rpc.v1 import control_pb2 as pb

_TO_STATE = {
    WeightState.COLD: pb.WEIGHT_STATE_COLD,
    WeightState.FETCHING: pb.WEIGHT_STATE_FETCHING,
    WeightState.HOST: pb.WEIGHT_STATE_HOST,
    WeightState.LOADING: pb.WEIGHT_STATE_LOADING,
    WeightState.RESIDENT: pb.WEIGHT_STATE_RESIDENT,
}
_FROM_STATE: dict[int, WeightState] = {number: state for state, number in _TO_STATE.items()}

# Fields of a ModelLoad that have the same name in the message.
_FIGURES = (
    "model",
    "pinned",
    "num_running",
    "num_waiting",
    "num_queued_tokens",
    "num_slabs",
    "num_idle_slabs",
    "weight_bytes",
    "num_loads",
    "problem",
)


def model_load_to_proto(load: ModelLoad) -> pb.HostedModel:
    """Write one model's share of a device group."""
    return pb.HostedModel(
        state=_TO_STATE[load.state],
        load_time=duration(load.load_s) if load.load_s > 0 else None,
        **{name: getattr(load, name) for name in _FIGURES},
    )


def model_load_from_proto(message: pb.HostedModel) -> ModelLoad:
    """Read one model's share of a device group; a state that we don't know counts as cold."""
    figures: dict[str, Any] = {name: getattr(message, name) for name in _FIGURES}
    state = _FROM_STATE.get(message.state, WeightState.COLD)
    return ModelLoad(state=state, load_s=seconds(message.load_time), **figures)


def wanted_state(number: int) -> WeightState | None:
    """Where somebody wants weights to be; None if nothing is said.

    Raises:
        InvalidRequest: There is no such state.
    """
    if number == pb.WEIGHT_STATE_UNSPECIFIED:
        return None
    if number not in _FROM_STATE:
        raise InvalidRequest.of("state", f"is {number}, which is no state of weights")
    return _FROM_STATE[number]


def wanted_state_to_proto(state: WeightState | None) -> pb.WeightState:
    """Write where weights are to be; None: nothing is said."""
    return pb.WEIGHT_STATE_UNSPECIFIED if state is None else _TO_STATE[state]


def residence_to_proto(residence: Residence) -> pb.Residence:
    """Write where a model's weights are in one device group."""
    return pb.Residence(
        group=residence.group,
        state=_TO_STATE[residence.state],
        pinned=residence.pinned,
        error=residence.error,
        elapsed=duration(residence.elapsed_s),
    )


def residence_from_proto(message: pb.Residence) -> Residence:
    """Read where a model's weights are; a state that we don't know counts as cold."""
    return Residence(
        message.group,
        _FROM_STATE.get(message.state, WeightState.COLD),
        message.pinned,
        message.error,
        seconds(message.elapsed),
    )
