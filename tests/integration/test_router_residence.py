"""Models' weights are moved and pinned in running groups, and watched until they are there."""

import asyncio
from dataclasses import replace

import grpc
import pytest

from fabric.client import (
    AsyncClient,
    GroupNotFound,
    InvalidRequest,
    ModelNotFound,
    RetryPolicy,
    Unavailable,
    WeightState,
)
from fabric.engine.link_answers import answer_to
from fabric.rpc.failures import error_of
from fabric.rpc.frames import Refused, SetResidence
from fabric.rpc.v1 import control_pb2
from tests.integration.fake_engine import FakeEngine, served
from tests.integration.router_world import MODEL, running_world

NO_RETRY = RetryPolicy(max_attempts=1)
COLD, HOST, LOADING, RESIDENT = (
    WeightState.COLD,
    WeightState.HOST,
    WeightState.LOADING,
    WeightState.RESIDENT,
)


@pytest.fixture
def engine(world):
    return world.groups[0].engine


@pytest.fixture
async def leaving(client, engine):
    """A call that waits for weights that are to leave the device, but have work."""
    engine.is_slow = True
    call = asyncio.create_task(client.set_residence(MODEL, HOST))
    while not engine.wishes:
        await asyncio.sleep(0)
    yield call
    call.cancel()


@pytest.fixture
async def loading(client, engine):
    """A call that waits for weights that are on their way from host memory to the device."""
    engine.weights = replace(engine.weights, state=HOST)
    engine.is_slow = True
    call = asyncio.create_task(client.set_residence(MODEL, RESIDENT))
    while engine.weights.state is not LOADING:
        await asyncio.sleep(0)
    yield call
    call.cancel()


async def wait_for_both(world):
    while not all(group.models for group in (await world.status()).groups):
        await asyncio.sleep(0)


async def reported(client, state):
    while (await client.status()).groups[0].load.models[0].state is not state:
        await asyncio.sleep(0)


async def test_weights_that_are_taken_away_and_brought_back_are_reported(client, engine):
    (there,) = await client.set_residence(MODEL, HOST)
    assert (there.group, there.state, there.pinned, there.error) == ("left", HOST, False, "")
    await reported(client, HOST)
    (back,) = await client.set_residence(MODEL, RESIDENT)
    assert (back.state, back.error) == (RESIDENT, "")
    assert engine.weights.state is RESIDENT


async def test_a_call_returns_when_the_weights_are_there(engine, loading):
    engine.weights = replace(engine.weights, state=RESIDENT)
    (residence,) = await loading
    assert (residence.state, residence.error) == (RESIDENT, "")
    assert residence.elapsed_s > 0


async def test_a_report_that_is_older_than_the_answer_counts_for_nothing(client, engine):
    engine.reported = engine.weights
    engine.weights = replace(engine.weights, state=HOST)
    engine.is_slow = True
    (residence,) = await client.set_residence(MODEL, RESIDENT, timeout_s=0.2)
    assert residence.state is LOADING
    assert residence.error == "is still loading after 0.2 s"


async def test_without_time_to_wait_a_call_says_how_far_the_move_is(client, engine):
    engine.weights = replace(engine.weights, state=HOST)
    engine.is_slow = True
    (residence,) = await client.set_residence(MODEL, RESIDENT, timeout_s=0)
    assert (residence.state, residence.error) == (LOADING, "is still loading after 0 s")
    assert engine.weights.state is LOADING


async def test_weights_that_fall_back_end_the_wait(client, engine, loading):
    await reported(client, LOADING)
    engine.weights = replace(engine.weights, state=HOST)
    (residence,) = await loading
    assert residence.state is HOST
    assert residence.error.startswith("went back to host before it was resident")


async def test_weights_that_came_and_had_to_go_between_two_reports_end_the_wait(engine, loading):
    engine.weights = replace(engine.weights, state=HOST, num_loads=1)
    (residence,) = await loading
    assert residence.state is HOST
    assert residence.error == "came to the device, and left it again for other models"


async def test_weights_leave_when_their_work_is_done(engine, leaving):
    engine.weights = replace(engine.weights, state=HOST)
    (residence,) = await leaving
    assert (residence.state, residence.error) == (HOST, "")


async def test_weights_that_come_back_for_requests_end_the_wait(engine, leaving):
    engine.weights = replace(engine.weights, state=LOADING)
    (residence,) = await leaving
    assert residence.state is LOADING
    assert residence.error == "left the device, and comes back for requests that wait for it"


async def test_weights_that_left_and_came_back_between_two_reports_end_the_wait(engine, leaving):
    engine.weights = replace(engine.weights, num_loads=1)
    (residence,) = await leaving
    assert residence.state is RESIDENT
    assert residence.error == "left the device, and came back for requests that waited for it"


async def test_weights_that_come_from_disk_past_host_memory_end_the_wait(client, engine):
    engine.weights = replace(engine.weights, state=COLD)
    engine.is_slow = True
    call = asyncio.create_task(client.set_residence(MODEL, HOST))
    while not engine.wishes:
        await asyncio.sleep(0)
    engine.weights = replace(engine.weights, state=RESIDENT, num_loads=1)
    (residence,) = await call
    assert residence.error == "came to the device for requests that waited for it"


async def test_a_load_that_was_under_way_is_not_taken_for_a_return(client, engine):
    engine.weights = replace(engine.weights, state=LOADING)
    engine.is_slow = True
    call = asyncio.create_task(client.set_residence(MODEL, HOST))
    while not engine.wishes:
        await asyncio.sleep(0)
    engine.weights = replace(engine.weights, state=RESIDENT, num_loads=1)
    # The call has asked again, and goes on waiting.
    while (None, None) not in engine.wishes:
        await asyncio.sleep(0)
    engine.weights = replace(engine.weights, state=HOST)
    (residence,) = await call
    assert (residence.state, residence.error) == (HOST, "")


@pytest.mark.parametrize("state", [HOST, LOADING])
async def test_a_load_that_fails_ends_the_wait_and_says_why(engine, loading, state):
    engine.weights = replace(engine.weights, state=state, problem="model.bin has changed")
    (residence,) = await loading
    assert (residence.state, residence.error) == (state, "model.bin has changed")


async def test_why_an_earlier_load_failed_is_no_answer_to_a_new_wish(client, engine):
    engine.weights = replace(engine.weights, state=HOST, problem="model.bin has changed")
    engine.reported = engine.weights
    engine.is_slow = True
    (residence,) = await client.set_residence(MODEL, RESIDENT, timeout_s=0.2)
    assert residence.error == "is still loading after 0.2 s"
    engine.weights = replace(engine.weights, problem="model.bin has changed")
    (unpinned,) = await client.set_residence(MODEL, pinned=False)
    assert unpinned.error == ""


async def test_a_group_that_is_lost_on_the_way_ends_the_wait(world, loading):
    await world.groups.pop().stop()
    (residence,) = await loading
    assert (residence.group, residence.state) == ("left", LOADING)
    assert "left" in residence.error


async def test_a_model_is_pinned_and_let_go_without_a_move(client, engine):
    (pinned,) = await client.set_residence(MODEL, pinned=True)
    assert (pinned.state, pinned.pinned, pinned.error) == (RESIDENT, True, "")
    with pytest.raises(InvalidRequest, match="pinned"):
        await client.set_residence(MODEL, COLD, group="left")
    (refused,) = await client.set_residence(MODEL, COLD)
    assert (refused.state, "is pinned" in refused.error) == (RESIDENT, True)
    (free,) = await client.set_residence(MODEL, pinned=False)
    assert (free.pinned, free.error) == (False, "")
    assert engine.weights.state is RESIDENT


async def test_all_groups_move_and_the_one_that_does_not_answer_says_so():
    async with running_world(num_groups=2, answer_timeout_s=0.05) as world:
        await wait_for_both(world)
        world.groups[0].engine.is_silent = True
        async with AsyncClient(world.target, retry=NO_RETRY) as client:
            left, right = await client.set_residence(MODEL, COLD)
            assert (left.group, left.state) == ("left", RESIDENT)
            assert "has not answered" in left.error
            assert (right.group, right.state, right.error) == ("right", COLD, "")
            with pytest.raises(Unavailable, match="has not answered"):
                await client.set_residence(MODEL, COLD, group="left")


async def test_one_group_moves_alone():
    async with running_world(num_groups=2) as world:
        await wait_for_both(world)
        async with AsyncClient(world.target) as client:
            (residence,) = await client.set_residence(MODEL, HOST, group="right")
            assert residence.group == "right"
            assert world.groups[0].engine.weights.state is RESIDENT


async def test_unknown_models_and_groups_are_not_found_and_the_known_ones_are_named(client):
    with pytest.raises(ModelNotFound, match=f"served: {MODEL}"):
        await client.set_residence("huge", RESIDENT)
    with pytest.raises(GroupNotFound, match="known: left"):
        await client.set_residence(MODEL, RESIDENT, group="middle")


async def test_a_group_that_hosts_other_models_names_them(world, client):
    group = await world.add_group("right")
    group.engine.served = lambda: (served("other"),)
    while [model.groups for model in await client.models()] != [("right",), ("left",)]:
        await asyncio.sleep(0)
    with pytest.raises(InvalidRequest, match="right does not host 'tiny'; it hosts: other"):
        await client.set_residence(MODEL, RESIDENT, group="right")
    (residence,) = await client.set_residence(MODEL, RESIDENT)
    assert residence.group == "left"


async def test_a_group_is_not_moved_to_what_it_does_not_host():
    answer = await answer_to(SetResidence(1, "huge", COLD, None), FakeEngine(), 3)
    assert isinstance(answer, Refused)
    assert isinstance(error_of(answer.failure), ModelNotFound)


async def test_a_model_whose_groups_are_down_is_unavailable(world, client):
    await world.groups.pop().stop()
    await world.wait_down()
    for group in ("", "left"):
        with pytest.raises(Unavailable):
            await client.set_residence(MODEL, RESIDENT, group=group)


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({}, "state: is missing"),
        ({"state": WeightState.FETCHING}, "state: is fetching; allowed: cold, host, resident"),
        ({"state": LOADING}, "state: is loading"),
        ({"state": COLD, "timeout_s": -1}, "timeout: is -1 s"),
        ({"state": COLD, "timeout_s": 3601}, "allowed: 0 to 3600"),
        ({"state": COLD, "timeout_s": float("nan")}, "timeout_s: has a wrong value"),
    ],
)
async def test_a_wish_that_nobody_can_meet_is_refused(client, engine, wish, message):
    with pytest.raises(InvalidRequest, match=message):
        await client.set_residence(MODEL, **wish)
    assert engine.weights.state is RESIDENT


async def test_a_state_that_there_is_not_is_refused(world):
    request = control_pb2.SetResidenceRequest(model=MODEL, state=77)
    with pytest.raises(grpc.aio.AioRpcError, match="is 77, which is no state of weights"):
        await world.control.SetResidence(request)
