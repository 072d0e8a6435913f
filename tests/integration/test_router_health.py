"""Health follows progress, and reflection tells what there is."""

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from fabric.core.request import LoadReport
from tests.integration.router_world import MODEL, failure, running_world, spec, stream

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def test_a_client_that_watches_sees_the_model_go_and_come_back():
    async with running_world() as world:
        watching = world.health.Watch(health_pb2.HealthCheckRequest(service=f"model:{MODEL}"))
        seen = aiter(watching)
        assert (await anext(seen)).status == SERVING
        group = world.groups.pop()
        await group.stop()
        assert (await anext(seen)).status == NOT_SERVING
        await world.add_group(epoch=2)
        assert (await anext(seen)).status == SERVING


async def test_one_watcher_that_leaves_does_not_silence_the_other():
    async with running_world() as world:
        request = health_pb2.HealthCheckRequest(service="")
        leaving, staying = world.health.Watch(request), world.health.Watch(request)
        seen = aiter(staying)
        await anext(aiter(leaving))
        await anext(seen)
        leaving.cancel()
        await world.groups.pop().stop()
        assert (await anext(seen)).status == NOT_SERVING


async def test_a_group_with_work_and_no_progress_is_not_serving_until_it_moves():
    async with running_world(stall_after_s=0.5) as world:
        engine = world.groups[0].engine
        engine.load = LoadReport(stalled_s=0.6)
        await world.wait_down()
        error = await failure(stream(world, spec()))
        assert "stalled" in error.details()
        engine.load = LoadReport()
        await world.wait_ready()


async def test_health_knows_the_services_and_no_others():
    async with running_world() as world:
        names = ("", "fabric.rpc.v1.InferenceService", "fabric.rpc.v1.ControlService")
        for name in names:
            answer = await world.health.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await world.health.Check(health_pb2.HealthCheckRequest(service="model:other"))
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        watching = world.health.Watch(health_pb2.HealthCheckRequest(service="model:other"))
        unknown = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        assert (await anext(aiter(watching))).status == unknown


async def test_a_draining_router_is_not_serving():
    async with running_world() as world:
        await world.router.drain(0)
        await world.wait_down()
        answer = await world.health.Check(health_pb2.HealthCheckRequest(service=""))
        assert answer.status == NOT_SERVING


async def test_reflection_lists_the_services():
    async with running_world() as world:
        stub = reflection_pb2_grpc.ServerReflectionStub(world.channel)
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        answers = [a async for a in stub.ServerReflectionInfo(iter([asked]))]
        names = {service.name for service in answers[0].list_services_response.service}
        assert {"fabric.rpc.v1.InferenceService", "grpc.health.v1.Health"} <= names


async def test_reflection_can_be_left_out():
    async with running_world(reflection=False) as world:
        stub = reflection_pb2_grpc.ServerReflectionStub(world.channel)
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        error = await failure(stub.ServerReflectionInfo(iter([asked])))
        assert error.code() == grpc.StatusCode.UNIMPLEMENTED
