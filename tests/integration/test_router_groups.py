"""Device groups that die, come back, lie, or send rubbish; and health that tells."""

import asyncio
import contextlib
import os
import random
import struct

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from fabric.core.request import GenerationRequest, LoadReport, RequestOutput, SequenceDelta
from fabric.core.sampling import SamplingParams
from fabric.router.connection import Connection, GroupAddress, LinkOptions
from fabric.rpc.frames import (
    LENGTH_BYTES,
    VERSION,
    Challenge,
    Frame,
    FrameCodec,
    Hello,
    Report,
    Step,
    StreamOutput,
    Submit,
    Welcome,
)
from fabric.rpc.link import Link
from fabric.rpc.secret import Role, new_nonce, prove
from fabric.rpc.status import from_rpc_error
from fabric.rpc.v1 import inference_pb2 as pb
from tests.integration.router_world import (
    MODEL,
    SECRET,
    cancelled_id,
    first_token,
    running_world,
    served,
    spec,
    start_group,
    stream,
)

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
CODEC = FrameCodec()


async def failure(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    return caught.value


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


async def test_a_group_that_is_taken_off_the_list_ends_its_streams():
    async with running_world() as world:
        world.groups[0].engine.is_pausing = True
        call = stream(world, spec())
        await first_token(call)
        world.router.set_groups(())
        assert (await failure(call)).code() == grpc.StatusCode.UNAVAILABLE
        await cancelled_id(world.groups[0])


async def test_the_death_of_one_group_leaves_streams_on_the_other_alone():
    async with running_world(num_groups=2) as world:
        for group in world.groups:
            group.engine.is_pausing = True
        while not all(group.models for group in (await world.status()).groups):
            await asyncio.sleep(0)
        calls = [stream(world, spec()) for _ in range(2)]
        for call in calls:
            await first_token(call)
        left, right = world.groups
        await left.stop()
        lost = calls[0] if left.engine.submitted else calls[1]
        kept = calls[1] if lost is calls[0] else calls[0]
        assert (await failure(lost)).code() == grpc.StatusCode.UNAVAILABLE
        right.engine.is_pausing = False
        right.engine.going.set()
        tokens = [token async for response in kept for token in response.delta.token_ids]
        assert tokens == list(range(1, 8))


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


async def read_frame(reader) -> Frame:
    length = int.from_bytes(await reader.readexactly(LENGTH_BYTES), "big")
    return CODEC.decode(await reader.readexactly(length))


async def greet(address, secret=SECRET):
    """A router of the test's own, greeted as far as the secret goes."""
    reader, writer = await asyncio.open_connection(address.host, address.port)
    challenge = await read_frame(reader)
    assert isinstance(challenge, Challenge)
    nonce = new_nonce()
    proof = prove(secret, Role.ROUTER, challenge.nonce, nonce)
    writer.write(CODEC.encode(Hello(VERSION, "test", nonce, proof)))
    return reader, writer


async def closed(reader):
    """Whatever is still sent, until the connection is closed."""
    with contextlib.suppress(ConnectionError):
        await asyncio.wait_for(reader.read(), 5)


async def test_a_router_with_a_wrong_secret_is_refused():
    group = await start_group()
    reader, writer = await greet(group.address, "a guess")
    assert await reader.read() == b""
    writer.close()
    await group.stop()


async def test_a_group_with_a_wrong_secret_is_never_used():
    async with running_world(num_groups=0, link_secret="another") as world:
        await world.add_group()
        error = await failure(stream(world, spec()))
        assert error.code() == grpc.StatusCode.UNAVAILABLE


async def test_bytes_that_are_no_frames_close_their_connection_and_no_other():
    rng = random.Random(7)
    async with running_world() as world:
        engine = world.groups[0].engine
        engine.is_pausing = True
        call = stream(world, spec())
        await first_token(call)
        address = world.groups[0].address
        valid = CODEC.encode(Hello(VERSION, "x", b"n" * 32, b"p" * 32))
        rubbish = [os.urandom(rng.randrange(1, 300)) for _ in range(20)]
        rubbish += [mutated(valid, rng) for _ in range(20)]
        rubbish += [b"\xff\xff\xff\xff", struct.pack(">I", 5000), b"GET / HTTP/1.1\r\n\r\n"]
        for data in rubbish:
            reader, writer = await asyncio.open_connection(address.host, address.port)
            writer.write(data)
            writer.write_eof()
            await closed(reader)
            writer.close()
        engine.is_pausing = False
        engine.going.set()
        tokens = [token async for response in call for token in response.delta.token_ids]
        assert tokens == list(range(1, 8))


async def test_a_greeted_router_that_sends_rubbish_loses_its_requests_alone():
    rng = random.Random(11)
    group = await start_group()
    group.engine.going.clear()
    request = CODEC.encode(Submit(0, group_request()))
    for _ in range(20):
        reader, writer = await greet(group.address)
        writer.write(request)
        writer.write(mutated(request, rng) + b"\xff\xff\xff\xff")
        # A longer length than the frame's is no rubbish until the sender has ended.
        writer.write_eof()
        await closed(reader)
        writer.close()
    await group.stop()
    assert group.link.num_streams == 0
    assert group.engine.num_live == 0


def mutated(data, rng):
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def group_request():
    return GenerationRequest("r", MODEL, (1, 2), SamplingParams(4))


async def test_a_router_that_does_not_read_is_disconnected():
    group = await start_group()
    group.engine.going.clear()
    reader, writer = await greet(group.address)
    assert isinstance(await read_frame(reader), Welcome)
    writer.write(CODEC.encode(Submit(0, group_request())))
    while not group.engine.submitted:
        await asyncio.sleep(0.01)
    writer.transport.pause_reading()
    name = group.engine.submitted[0].request_id
    flood = RequestOutput(name, (SequenceDelta(0, 0, (1,), "x" * 2**20),))
    for _ in range(200):
        group.link.publish([flood])
        await asyncio.sleep(0)
    assert await asyncio.to_thread(group.engine.cancelled.get, timeout=5) == name
    assert group.link.unsent_bytes == 0
    writer.close()
    await group.stop()


async def test_frames_of_another_epoch_are_dropped():
    connection = Connection(
        GroupAddress("left", "", 0, 3), LinkOptions(SECRET, "test"), lambda: None
    )
    sent = []
    link = Link(connection, CODEC)
    link.send_bytes = sent.append  # type: ignore[method-assign]
    connection.on_open(link)
    connection.on_frame(Challenge(VERSION, b"g" * 32))
    hello = CODEC.decode(sent[0][LENGTH_BYTES:])
    proof = prove(SECRET, Role.GROUP, b"g" * 32, hello.nonce)
    connection.on_frame(Welcome(VERSION, proof, "left", 3, (served(),)))
    stream_number, mailbox = connection.submit(group_request())
    for epoch, number in ((2, 9), (3, 0)):
        delta = SequenceDelta(0, number, (number,))
        connection.on_frame(Step(epoch, (StreamOutput(stream_number, (delta,), None, None, None),)))
        connection.on_frame(Report(epoch, LoadReport(num_running=epoch)))
    assert [d.token_ids for d in (await mailbox.take()).deltas] == [(0,)]
    assert connection.load.num_running == 3
