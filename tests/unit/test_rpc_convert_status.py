"""What runs survives the way to the operator."""

from dataclasses import fields

import pytest

from fabric.core.errors import InvalidRequest
from fabric.core.request import LoadReport, ModelCard, ModelLoad, Timing
from fabric.core.status import (
    Explanation,
    FabricStatus,
    GroupState,
    GroupStatus,
    ModelState,
    ModelStatus,
    PolicyChange,
    RequestPhase,
    RequestStatus,
    Residence,
)
from fabric.core.weights import WeightState
from fabric.rpc.convert_requests import (
    change_from_proto,
    change_to_proto,
    explanation_from_proto,
    explanation_to_proto,
)
from fabric.rpc.convert_status import (
    fabric_status_from_proto,
    fabric_status_to_proto,
    model_from_proto,
    model_to_proto,
)
from fabric.rpc.convert_weights import (
    residence_from_proto,
    residence_to_proto,
    wanted_state,
    wanted_state_to_proto,
)
from fabric.rpc.v1 import control_pb2


def test_all_of_a_model_but_where_its_tokenizer_lies_reaches_the_client() -> None:
    card = ModelCard("m", "", 256, 512, "bfloat16", "LlamaForCausalLM", 7, "hub:m", "int4")
    status = ModelStatus(card, ModelState.READY, ("gang",))
    assert model_from_proto(model_to_proto(status)) == status


def test_every_figure_of_a_load_report_reaches_the_client() -> None:
    figures = {field.name: number for number, field in enumerate(fields(LoadReport), 1)}
    models = tuple(ModelLoad(state, state) for state in WeightState)
    load = LoadReport(**{**figures, "policy": "mlfq", "models": models})  # type: ignore[arg-type]
    group = GroupStatus("gang", "127.0.0.1:1", 3, GroupState.READY, ("model",), load)
    status = FabricStatus("0.1", 2.0, (group,), 5, {"stop": 4}, False)
    data = fabric_status_to_proto(status).SerializeToString()
    assert fabric_status_from_proto(control_pb2.StatusResponse.FromString(data)) == status


def test_every_figure_of_a_hosted_model_reaches_the_client() -> None:
    figures = {field.name: number for number, field in enumerate(fields(ModelLoad), 1)}
    words = {"model": "m", "state": WeightState.LOADING, "pinned": True, "problem": "torn"}
    hosted = ModelLoad(**{**figures, **words})  # type: ignore[arg-type]
    load = LoadReport(models=(hosted, ModelLoad("n")))
    group = GroupStatus("left", "127.0.0.1:1", 3, GroupState.READY, ("m", "n"), load)
    status = FabricStatus("0.1", 2.0, (group,), 0, {}, False)
    data = fabric_status_to_proto(status).SerializeToString()
    assert fabric_status_from_proto(control_pb2.StatusResponse.FromString(data)) == status


@pytest.mark.parametrize("state", WeightState)
def test_where_weights_are_reaches_the_client(state: WeightState) -> None:
    residence = Residence("left", state, True, "is still there", 1.5)
    data = residence_to_proto(residence).SerializeToString()
    assert residence_from_proto(control_pb2.Residence.FromString(data)) == residence


@pytest.mark.parametrize("state", [None, *WeightState])
def test_where_weights_are_to_be_reaches_the_server(state: WeightState | None) -> None:
    assert wanted_state(wanted_state_to_proto(state)) is state


def test_a_state_of_weights_that_there_isnt_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="state: is 77"):
        wanted_state(77)


def test_an_idle_group_sends_no_durations() -> None:
    group = GroupStatus("gang", "127.0.0.1:1", 3, GroupState.READY, ("model",), LoadReport())
    status = FabricStatus("0.1", 2.0, (group,), 0, {}, False)
    (message,) = fabric_status_to_proto(status).groups
    assert not message.HasField("stalled")
    assert not message.HasField("control_time")


@pytest.mark.parametrize("phase", RequestPhase)
@pytest.mark.parametrize("level", [None, 0, 3])
def test_where_a_request_is_reaches_the_client(phase: RequestPhase, level: int | None) -> None:
    timing = Timing(0.5, 0.25, 0.75, 1.5, 2.25, 3, 0.125, 2**40, 64, "left")
    counts = (100, 7, 3, 9)
    rank = (-1.0, float("inf"))
    why = "r-2 ranks before it"
    status = RequestStatus("r", "m", phase, "acme", -2, rank, level, *counts, "disk", why, timing)
    explanation = Explanation((status, RequestStatus("s", "m", phase)), 4, ("right",))
    data = explanation_to_proto(explanation).SerializeToString()
    message = control_pb2.ExplainRequestsResponse.FromString(data)
    assert explanation_from_proto(message) == explanation


def test_a_change_of_policy_reaches_the_client() -> None:
    change = PolicyChange("left", "fcfs", "fcfs", "it is down")
    assert change_from_proto(change_to_proto(change)) == change
