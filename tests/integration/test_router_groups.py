"""Device groups that die and come back, and what becomes of the streams on them."""

import asyncio

import grpc

from fabric.rpc.status import from_rpc_error
from fabric.rpc.v1 import inference_pb2 as pb
from tests.integration.router_world import (
    cancelled_id,
    failure,
    first_token,
    running_world,
    spec,
    start_group,
    stream,
)


async def test_a_lost_group_ends_its_streams_at_once_and_serves_again_in_its_next_epoch():
    async with running_world() as world:
        (group,) = world.groups
        group.engine.is_pausing = True
        call = stream(world, spec())
        await first_token(call)
        await group.stop()
        error = await failure(call)
        assert error.code() == grpc.StatusCode.UNAVAILABLE
        assert from_rpc_error(error).retry_after_s == 1.0
        await world.wait_down()
        world.groups.clear()
        await world.add_group(epoch=2)
        await world.wait_ready()
        answer = await world.stub.Generate(pb.GenerateRequest(spec=spec()))
        assert list(answer.sequences[0].token_ids) == list(range(8))
        assert (await world.status()).groups[0].epoch == 2
        assert world.router.num_inflight == 0


async def test_a_group_that_restarts_at_its_address_is_found_without_being_told():
    async with running_world() as world:
        group = world.groups.pop()
        await group.stop()
        await world.wait_down()
        again = await start_group("left", 2, group.address.port)
        await world.wait_ready()
        assert (await world.status()).groups[0].epoch == 2
        await again.stop()


async def test_a_group_that_is_taken_off_the_list_keeps_its_streams_and_gets_nothing_new():
    async with running_world() as world:
        (group,) = world.groups
        group.engine.is_pausing = True
        call = stream(world, spec())
        await first_token(call)
        world.router.set_groups(())
        error = await failure(stream(world, spec()))
        assert error.code() == grpc.StatusCode.UNAVAILABLE
        group.engine.is_pausing = False
        group.engine.going.set()
        tokens = [token async for response in call for token in response.delta.token_ids]
        assert tokens == list(range(1, 8))
        assert world.router.num_inflight == 0


async def test_a_group_that_is_taken_off_the_list_ends_its_streams_when_its_time_is_over():
    async with running_world(leave_timeout_s=0.0) as world:
        world.groups[0].engine.is_pausing = True
        call = stream(world, spec())
        await first_token(call)
        world.router.set_groups(())
        assert (await failure(call)).code() == grpc.StatusCode.UNAVAILABLE
        await cancelled_id(world.groups[0])


async def test_a_group_that_comes_back_while_it_leaves_keeps_its_connection():
    async with running_world() as world:
        (group,) = world.groups
        group.engine.is_pausing = True
        call = stream(world, spec())
        await first_token(call)
        world.router.set_groups(())
        world.router.set_groups((group.address,))
        await world.wait_ready()
        group.engine.is_pausing = False
        group.engine.going.set()
        tokens = [token async for response in call for token in response.delta.token_ids]
        assert tokens == list(range(1, 8))
        answer = await world.stub.Generate(pb.GenerateRequest(spec=spec()))
        assert list(answer.sequences[0].token_ids) == list(range(8))


async def test_a_leaving_group_that_dies_ends_its_streams_and_is_not_dialled_again():
    async with running_world() as world:
        group = world.groups.pop()
        group.engine.is_pausing = True
        call = stream(world, spec())
        await first_token(call)
        world.router.set_groups(())
        await group.stop()
        assert (await failure(call)).code() == grpc.StatusCode.UNAVAILABLE
        again = await start_group("left", 1, group.address.port)
        assert (await world.status()).groups == []
        assert world.router.num_inflight == 0
        await again.stop()


async def test_a_router_stops_at_once_while_a_group_with_streams_leaves():
    async with running_world() as world:
        world.groups[0].engine.is_pausing = True
        call = stream(world, spec())
        await first_token(call)
        world.router.set_groups(())
        await asyncio.wait_for(world.router.stop(0), 5)
        assert (await failure(call)).code() != grpc.StatusCode.OK


async def test_the_death_of_one_group_leaves_streams_on_the_other_alone():
    async with running_world(num_groups=2) as world:
        for group in world.groups:
            group.engine.is_pausing = True
        while not all(group.models for group in (await world.status()).groups):
            await asyncio.sleep(0)
        # One after the other: two that come at once may be taken in either order.
        lost = stream(world, spec())
        await first_token(lost)
        kept = stream(world, spec())
        await first_token(kept)
        left, right = world.groups
        assert (len(left.engine.submitted), len(right.engine.submitted)) == (1, 1)
        await left.stop()
        assert (await failure(lost)).code() == grpc.StatusCode.UNAVAILABLE
        right.engine.is_pausing = False
        right.engine.going.set()
        tokens = [token async for response in kept for token in response.delta.token_ids]
        assert tokens == list(range(1, 8))
