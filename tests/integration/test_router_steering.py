"""Requests in flight are explained, and policies switched, while the groups run."""

import asyncio

import grpc
import pytest

from fabric.client import (
    AsyncClient,
    GroupNotFound,
    InvalidRequest,
    Objectives,
    PolicyChange,
    RequestPhase,
    RetryPolicy,
    Unavailable,
)
from fabric.core.errors import InternalError
from fabric.rpc.v1 import inference_pb2 as pb
from fabric.scheduler.policies import PolicyConfig
from tests.integration.router_world import MODEL, running_world, spec, stream

NO_RETRY = RetryPolicy(max_attempts=1)


async def hold(world, *request_ids, tenant=""):
    """Requests of these ids, in flight without a token as long as the first group rests."""
    engine = world.groups[0].engine
    engine.going.clear()
    scheduling = pb.SchedulingOptions(tenant=tenant, priority=3)
    calls = []
    for name in request_ids:
        calls.append(stream(world, spec(request_id=name, scheduling=scheduling)))
        await anext(aiter(calls[-1]))
        while engine.num_live < len(calls):
            await asyncio.sleep(0)
    return calls


async def wait_for_both(world):
    while not all(group.models for group in (await world.status()).groups):
        await asyncio.sleep(0)


async def test_requests_are_shown_by_their_clients_ids_in_the_policys_order(world, client):
    calls = await hold(world, "b", "a:b", tenant="acme")
    explanation = await client.explain()
    assert [request.request_id for request in explanation.requests] == ["a:b", "b"]
    first = explanation.requests[0]
    assert (first.model, first.tenant, first.priority) == (MODEL, "acme", 3)
    assert (first.phase, first.num_output_tokens) == (RequestPhase.SWAPPED, 0)
    assert first.last_preemption == "a:b ranks before it"
    assert (first.timing.group, first.timing.swapped_bytes) == ("left", 4096)
    assert len(calls) == 2


async def test_one_request_can_be_asked_for_and_the_others_are_counted(world, client):
    calls = await hold(world, "a", "b", "c")
    (found,) = (await client.explain(request_id="b")).requests
    assert found.request_id == "b"
    assert (await client.explain(request_id="d")).requests == ()
    explanation = await client.explain("left", limit=1)
    assert [request.request_id for request in explanation.requests] == ["c"]
    assert explanation.num_omitted == 2
    assert len(calls) == 3


async def test_the_limit_holds_for_all_groups_together():
    async with running_world(num_groups=2) as world:
        await wait_for_both(world)
        for group in world.groups:
            group.engine.going.clear()
        calls = [stream(world, spec()) for _ in range(4)]
        for call in calls:
            await anext(aiter(call))
        while sum(group.engine.num_live for group in world.groups) < 4:
            await asyncio.sleep(0)
        async with AsyncClient(world.target) as client:
            explanation = await client.explain(limit=3)
            groups = [request.timing.group for request in explanation.requests]
            assert groups == ["left", "left", "right"]
            assert explanation.num_omitted == 1


@pytest.mark.parametrize("limit", [0, 4097, -1, 2**40])
async def test_a_limit_out_of_bounds_is_refused(client, limit):
    with pytest.raises(InvalidRequest, match="limit: "):
        await client.explain(limit=limit)


async def test_an_id_that_no_request_can_have_is_refused(client):
    with pytest.raises(InvalidRequest, match="request_id: "):
        await client.explain(request_id="x" * 1_000_000)


async def test_an_unknown_group_is_not_found_and_the_known_ones_are_named(client):
    for asked in (client.explain("middle"), client.set_policy("fcfs", "middle")):
        with pytest.raises(GroupNotFound, match="known: left") as caught:
            await asked
        assert caught.value.group == "middle"
    with pytest.raises(GroupNotFound):
        await client.drain("middle")


async def test_a_group_that_does_not_answer_is_named_and_holds_up_nobody():
    async with running_world(num_groups=2, answer_timeout_s=0.05) as world:
        await wait_for_both(world)
        world.groups[0].engine.is_silent = True
        async with AsyncClient(world.target, retry=NO_RETRY) as client:
            assert (await client.explain()).unanswered == ("left",)
            with pytest.raises(Unavailable, match="has not answered for"):
                await client.explain("left")
            left, right = await client.set_policy("orca")
            assert (left.after, "has not answered" in left.error) == ("fcfs", True)
            assert right == PolicyChange("right", "fcfs", "orca")


async def test_a_group_that_is_lost_answers_no_question(world, client):
    await world.groups.pop().stop()
    await world.wait_down()
    assert (await client.explain()).unanswered == ("left",)
    with pytest.raises(Unavailable):
        await client.explain("left")


async def test_a_policy_is_switched_with_requests_in_flight(world, client):
    (call,) = await hold(world, "a")
    changes = await client.set_policy("mlfq", numbers={"alpha_s": 1, "quantum_ratio": 3})
    assert changes == (PolicyChange("left", "fcfs", "mlfq"),)
    engine = world.groups[0].engine
    (config,) = engine.policies
    assert (config.name, config.alpha_s, config.quantum_ratio) == ("mlfq", 1.0, 3.0)
    assert config.ageing == PolicyConfig().ageing
    while (await client.status()).groups[0].load.policy != "mlfq":
        pass
    engine.going.set()
    tokens = [token async for response in call for token in response.delta.token_ids]
    assert tokens == list(range(8))


@pytest.mark.parametrize(
    ("policy", "numbers", "field", "message"),
    [
        ("", {}, "policy", "allowed: fcfs, orca"),
        ("lifo", {}, "policy", "'lifo'; allowed: fcfs, orca"),
        ("mlfq", {"alpha": 1}, "numbers.alpha", "alpha_s"),
        ("mlfq", {"name": 1}, "numbers.name", "alpha_s"),
        ("mlfq", {"quantum_s": 0}, "numbers.quantum_s", "is 0"),
        ("mlfq", {"quantum_ratio": 1}, "numbers.quantum_ratio", "1.01 to"),
        ("srw", {"ageing": -1}, "numbers.ageing", "0 to"),
        ("srw", {"ageing": float("nan")}, "numbers.ageing", "is nan"),
        ("srw", {"min_run_s": float("inf")}, "numbers.min_run_s", "is inf"),
        ("srw", {"min_run_s": "long"}, "numbers", "wrong value"),
    ],
)
async def test_a_wrong_policy_is_named_and_changes_nothing(
    world, client, policy, numbers, field, message
):
    with pytest.raises(InvalidRequest) as caught:
        await client.set_policy(policy, numbers=numbers)
    (violation,) = caught.value.violations
    assert violation.field == field
    assert message in violation.description
    assert world.groups[0].engine.policies == []


async def test_an_engine_that_fails_to_switch_goes_on_and_says_so(world, client):
    with pytest.raises(InternalError, match="device group's log"):
        await client.set_policy("srw", "left", numbers={"ageing": 0.5})
    (change,) = await client.set_policy("srw", numbers={"ageing": 0.5})
    assert (change.before, change.after) == ("fcfs", "fcfs")
    assert "an error of ours" in change.error
    assert await client.generate(MODEL, "hello", max_tokens=2)


async def test_what_a_request_says_of_its_service_reaches_the_engine(world, client):
    objectives = Objectives(ttft_s=0.5, tpot_s=0.0625)
    await client.generate(
        MODEL,
        "hello",
        max_tokens=2,
        tenant="acme",
        objectives=objectives,
        expected_tokens=9,
        priority=-1,
    )
    (request,) = world.groups[0].engine.submitted
    assert (request.tenant, request.priority, request.expected_tokens) == ("acme", -1, 9)
    assert request.objectives == objectives


async def test_the_control_service_is_reached_by_any_grpc_client(world):
    path = "/fabric.rpc.v1.ControlService/SetPolicy"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.channel.unary_unary(path)(b"\xff garbage")
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
