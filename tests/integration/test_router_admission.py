"""Requests that are refused at once: late, over a tenant's limits, or too many for cold weights."""

import asyncio
from contextlib import asynccontextmanager

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from fabric.client import AsyncClient
from fabric.core.request import ModelLoad, Objectives, ServicePace, Timing
from fabric.core.weights import WeightState
from fabric.router.tenants import TenantLimits
from fabric.rpc.status import from_rpc_error
from fabric.rpc.v1 import control_pb2
from fabric.rpc.v1 import inference_pb2 as pb
from tests.integration.fake_engine import MODEL, served
from tests.integration.router_world import failure, first_token, running_world, spec, stream
from tests.integration.test_router_metrics import scrape

# A prompt takes ten seconds, and an iteration one.
SLOW = served(pace=ServicePace(((1, 10.0),), ((1, 1, 1.0),), load_s=3.0))
NOTHING = pb.Objectives()


def asked(objectives=NOTHING, tenant="", **fields):
    scheduling = pb.SchedulingOptions(objectives=objectives, tenant=tenant)
    return spec(scheduling=scheduling, **fields)


def first_within(seconds, **fields):
    return pb.Objectives(ttft=Duration(seconds=seconds), **fields)


def counted(found, name, **labels):
    return found.get((name, frozenset(labels.items())), 0)


def slo(found, objective, outcome):
    labels = {"model_name": MODEL, "objective": objective, "outcome": outcome}
    return counted(found, "fabric_slo_total", **labels)


async def answer(world, message):
    return await world.stub.Generate(pb.GenerateRequest(spec=message))


async def wait_state(world, group, state):
    """Until the router has heard where the group's weights are."""
    group.engine.weights = ModelLoad(MODEL, state)
    async with AsyncClient(world.target) as client:
        while True:
            for status in (await client.status()).groups:
                loads = status.load.models
                if status.name == group.address.name and loads and loads[0].state is state:
                    return
            await asyncio.sleep(0)


@asynccontextmanager
async def slow_world(**settings):
    """A router with one group, which is known to be slow."""
    async with running_world(num_groups=0, metrics_port=0, **settings) as world:
        await world.add_group(models=(SLOW,))
        await world.wait_ready()
        yield world


async def test_a_request_that_would_be_late_is_refused_at_once_if_it_asked_for_that():
    async with slow_world() as world:
        error = await failure(stream(world, asked(first_within(1, refuse_if_late=True))))
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error.details() == (
            "a request to 'tiny' would miss its ttft objective: 10 s predicted, 1 s allowed"
        )
        assert from_rpc_error(error).retry_after_s == pytest.approx(9.0)
        assert world.groups[0].engine.submitted == []
        assert world.router.num_inflight == 0
        found = await scrape(world)
        assert slo(found, "ttft", "refused") == 1
        assert counted(found, "fabric_requests_ended_total", outcome="resource_exhausted") == 1


async def test_a_request_that_did_not_ask_to_be_refused_is_served_late_and_counted():
    async with slow_world() as world:
        world.groups[0].engine.timing = Timing(ttft_s=2.0, decode_s=0.7, e2e_s=2.7)
        objectives = pb.Objectives(
            ttft=Duration(seconds=1), tpot=Duration(nanos=10**8), e2e=Duration(seconds=1)
        )
        await answer(world, asked(objectives))
        await answer(world, asked(pb.Objectives(tpot=Duration(nanos=10**8))))
        await answer(world, asked())
        found = await scrape(world)
        assert (slo(found, "ttft", "missed"), slo(found, "ttft", "met")) == (1, 0)
        assert (slo(found, "tpot", "missed"), slo(found, "tpot", "met")) == (0, 2)
        assert (slo(found, "e2e", "missed"), slo(found, "e2e", "met")) == (1, 0)
        assert counted(found, "fabric_goodput_requests_total", model_name=MODEL) == 1


async def test_the_groups_schedule_by_the_models_objectives_where_a_request_has_none():
    async with slow_world(objectives={MODEL: Objectives(e2e_s=5.0)}) as world:
        await answer(world, asked(first_within(1)))
        assert world.groups[0].engine.submitted[0].objectives == Objectives(1.0, None, 5.0)


async def test_a_model_can_be_configured_to_refuse_what_is_late():
    objectives = {MODEL: Objectives(ttft_s=2.0, refuse_if_late=True)}
    async with slow_world(objectives=objectives) as world:
        error = await failure(stream(world, asked()))
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        await answer(world, asked(first_within(60)))


async def test_requests_with_objectives_that_are_lost_with_their_group_have_missed_them():
    async with slow_world() as world:
        group = world.groups.pop()
        group.engine.is_pausing = True
        call = stream(world, asked(first_within(60)))
        await first_token(call)
        await group.stop()
        await failure(call)
        assert slo(await scrape(world), "ttft", "missed") == 1


async def test_a_request_whose_client_leaves_has_neither_met_nor_missed():
    async with slow_world() as world:
        world.groups[0].engine.is_pausing = True
        call = stream(world, asked(first_within(60)))
        await first_token(call)
        call.cancel()
        while world.router.num_inflight:
            await asyncio.sleep(0)
        assert not [name for name, _ in await scrape(world) if name == "fabric_slo_total"]


async def test_first_tokens_that_come_sooner_than_predicted_show_in_the_metrics():
    async with slow_world() as world:
        await answer(world, asked())
        ratio = counted(await scrape(world), "fabric_prediction_ratio", group="left")
        assert 0.5 <= ratio < 1.0


async def test_a_tenant_over_its_rate_is_refused_by_name_and_told_when_to_come_again():
    limits = {"acme": TenantLimits(tokens_per_s=1.0, burst_tokens=20)}
    async with running_world(tenants=limits) as world:
        await answer(world, asked(tenant="acme"))
        error = await failure(stream(world, asked(tenant="acme")))
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "tenant 'acme' is over its tokens_per_s of 1" in error.details()
        assert 0 < from_rpc_error(error).retry_after_s < 14
        await answer(world, asked(tenant="other"))


async def test_a_tenant_has_so_many_requests_in_flight_and_others_too():
    async with running_world(default_tenant=TenantLimits(max_inflight=1)) as world:
        world.groups[0].engine.is_pausing = True
        call = stream(world, asked(tenant="acme"))
        await first_token(call)
        error = await failure(stream(world, asked(tenant="acme")))
        assert "'acme' has 1 requests in flight" in error.details()
        other = stream(world, asked(tenant="other"))
        await anext(aiter(other))
        call.cancel()
        other.cancel()


async def test_a_request_for_weights_that_are_away_is_sent_to_wake_them():
    async with slow_world() as world:
        await wait_state(world, world.groups[0], WeightState.HOST)
        await answer(world, asked())
        assert len(world.groups[0].engine.submitted) == 1


async def test_no_more_requests_wait_for_weights_than_allowed_and_deadlines_hold():
    async with slow_world(max_waiting_cold=1) as world:
        (group,) = world.groups
        await wait_state(world, group, WeightState.HOST)
        group.engine.going.clear()
        waiting = stream(world, asked(), timeout=0.3)
        await anext(aiter(waiting))
        error = await failure(stream(world, asked()))
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error.details() == "1 requests wait for weights of 'tiny', the most allowed"
        assert from_rpc_error(error).retry_after_s == 3.0
        assert (await failure(waiting)).code() == grpc.StatusCode.DEADLINE_EXCEEDED
        while world.router.num_inflight:
            await asyncio.sleep(0)
        await asyncio.to_thread(group.engine.cancelled.get, timeout=5)
        group.engine.going.set()
        await answer(world, asked())


async def test_requests_go_to_the_group_where_their_model_is_on_the_device():
    async with running_world(num_groups=0) as world:
        groups = [await world.add_group(name, models=(SLOW,)) for name in ("left", "right")]
        await world.wait_ready()
        await wait_state(world, groups[0], WeightState.COLD)
        await wait_state(world, groups[1], WeightState.RESIDENT)
        for _ in range(3):
            await answer(world, asked())
        assert [len(group.engine.submitted) for group in groups] == [0, 3]


async def test_a_group_that_drains_gets_nothing_new_even_if_it_would_be_first():
    async with running_world(num_groups=0) as world:
        groups = [await world.add_group(name, models=(SLOW,)) for name in ("left", "right")]
        await world.wait_ready()
        await wait_state(world, groups[0], WeightState.RESIDENT)
        await wait_state(world, groups[1], WeightState.COLD)
        await world.control.Drain(control_pb2.DrainRequest(group="left"))
        await answer(world, asked())
        assert [len(group.engine.submitted) for group in groups] == [0, 1]
