"""What runs survives the way to the operator."""

from dataclasses import fields

from fabric.core.request import LoadReport
from fabric.core.status import FabricStatus, GroupState, GroupStatus
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
