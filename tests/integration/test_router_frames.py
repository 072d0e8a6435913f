"""What a peer on the link may send, and what becomes of it."""

import asyncio
import contextlib
import os
import random
import struct

import grpc

from fabric.core.request import GenerationRequest, LoadReport, RequestOutput, SequenceDelta
from fabric.core.sampling import SamplingParams
from fabric.router.connection import Connection, GroupAddress, LinkOptions
from fabric.rpc.frames import (
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
from fabric.rpc.framing import LENGTH_BYTES
from fabric.rpc.link import Link
from fabric.rpc.secret import Role, new_nonce, prove
from tests.integration.fake_engine import served
from tests.integration.router_world import (
    MODEL,
    SECRET,
    failure,
    first_token,
    running_world,
    spec,
    start_group,
    stream,
)

CODEC = FrameCodec()


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
