"""What runs survives the way to the operator."""

from dataclasses import fields

import pytest

from fabric.core.request import LoadReport, Timing
from fabric.core.status import (
    Explanation,
    FabricStatus,
    GroupState,
    GroupStatus,
    PolicyChange,
    RequestPhase,
    RequestStatus,
)
from fabric.rpc.convert_requests import (
    change_from_proto,
    change_to_proto,
    explanation_from_proto,
    explanation_to_proto,
)
from fabric.rpc.convert_status import fabric_status_from_proto, fabric_status_to_proto
from fabric.rpc.v1 import control_pb2


def test_every_figure_of_a_load_report_reaches_the_client() -> None:
    figures = {field.name: number for number, field in enumerate(fields(LoadReport), 1)}
    load = LoadReport(**{**figures, "policy": "mlfq"})  # type: ignore[arg-type]
    group = GroupStatus("gang", "127.0.0.1:1", 3, GroupState.READY, ("model",), load)
    status = FabricStatus("0.1", 2.0, (group,), 5, {"stop": 4}, False)
    data = fabric_status_to_proto(status).SerializeToString()
    assert fabric_status_from_proto(control_pb2.StatusResponse.FromString(data)) == status


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
