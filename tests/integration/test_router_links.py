"""The link under encryption, silence and peers that never greet."""

import asyncio
import shutil
import ssl
import subprocess

import grpc
import grpc.aio
import pytest

from fabric.core.errors import ConfigError
from fabric.core.request import GenerationRequest
from fabric.core.sampling import SamplingParams
from fabric.engine.link_server import LinkServer, LinkSettings
from fabric.router.connection import GroupAddress, LinkOptions
from fabric.router.group_link import GroupLink
from fabric.router.server import RouterServer, RouterSettings, TlsSettings
from fabric.rpc.frames import FrameCodec
from fabric.rpc.v1 import inference_pb2 as pb
from fabric.rpc.v1 import inference_pb2_grpc
from tests.integration.fake_engine import MODEL
from tests.integration.router_world import SECRET, FakeEngine, FakeTokenizer, running_world

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")


@pytest.fixture
def certificate(tmp_path):
    """A self-signed certificate for localhost, and its key."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "1", "-subj", "/CN=localhost", "-addext"),
            *("subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(cert)),
        ],
        check=True,
        capture_output=True,
    )
    return cert, key


class Watched:
    """A GroupLink whose changes can be waited for."""

    def __init__(self, address, **options):
        self._changed = asyncio.Event()
        self.link = GroupLink(
            address, LinkOptions(SECRET, "test", **options), FrameCodec(), self._changed.set
        )

    async def wait(self, is_so):
        async with asyncio.timeout(5):
            while not is_so(self.link):
                self._changed.clear()
                await self._changed.wait()


@needs_openssl
async def test_the_link_can_be_encrypted(certificate):
    cert, key = certificate
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server_side.load_cert_chain(cert, key)
    server = LinkServer(FakeEngine(), LinkSettings("left", 1, SECRET), tls=server_side)
    _, port = await server.start()
    trusting = ssl.create_default_context(cafile=cert)
    watched = Watched(GroupAddress("left", "localhost", port, 1), tls=trusting)
    await watched.wait(lambda link: link.is_connected)
    await watched.link.stop()
    await server.stop()


@needs_openssl
async def test_the_router_can_ask_its_clients_for_a_certificate(certificate):
    cert, key = certificate
    async with running_world(num_groups=0, tls=TlsSettings(cert, key, cert)) as world:
        port = world.target.split(":")[1]
        roots, secret_key = cert.read_bytes(), key.read_bytes()
        proven = grpc.ssl_channel_credentials(roots, secret_key, roots)
        async with grpc.aio.secure_channel(
            f"localhost:{port}", proven, options=[("grpc.ssl_target_name_override", "localhost")]
        ) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            assert len((await stub.ListModels(pb.ListModelsRequest())).models) == 1
        with pytest.raises(grpc.aio.AioRpcError):
            await world.stub.ListModels(pb.ListModelsRequest(), timeout=5)


async def test_a_link_that_leaves_closes_when_its_last_stream_has_ended():
    engine = FakeEngine()
    server = LinkServer(engine, LinkSettings("left", 1, SECRET))
    host, port = await server.start()
    watched = Watched(GroupAddress("left", host, port, 1))
    await watched.wait(lambda link: link.is_connected)
    request = GenerationRequest("id", MODEL, (1, 2), SamplingParams(max_tokens=1))
    with watched.link.open(request):
        leaving = asyncio.create_task(watched.link.leave(5))
        await asyncio.sleep(0)
        assert watched.link.is_connected
    await leaving
    assert (watched.link.is_connected, watched.link.num_streams) == (False, 0)
    await server.stop()


async def test_a_group_that_falls_silent_is_given_up_and_dialled_again():
    settings = LinkSettings("left", 1, SECRET, report_interval_s=3600)
    server = LinkServer(FakeEngine(), settings)
    host, port = await server.start()
    watched = Watched(GroupAddress("left", host, port, 1), silence_s=0.05)
    await watched.wait(lambda link: link.is_connected)
    await watched.wait(lambda link: not link.is_connected)
    await watched.wait(lambda link: link.is_connected)
    await watched.link.stop()
    await server.stop()


async def test_a_group_of_an_older_epoch_than_expected_is_not_used():
    server = LinkServer(FakeEngine(), LinkSettings("left", 1, SECRET))
    host, port = await server.start()
    watched = Watched(GroupAddress("left", host, port, 2), greeting_timeout_s=0.5)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await watched.wait(lambda link: link.is_connected)
    await watched.link.stop()
    await server.stop()


async def test_a_peer_that_never_greets_is_let_go():
    settings = LinkSettings("left", 1, SECRET, greeting_timeout_s=0.05)
    server = LinkServer(FakeEngine(), settings)
    host, port = await server.start()
    reader, writer = await asyncio.open_connection(host, port)
    async with asyncio.timeout(5):
        await reader.read()
    writer.close()
    await server.stop()


async def test_a_port_that_is_taken_is_a_configuration_error():
    async with running_world(num_groups=0) as world:
        port = int(world.target.split(":")[1])
        second = RouterServer(RouterSettings(SECRET, port=port), load_tokenizer=FakeTokenizer.load)
        with pytest.raises(ConfigError, match=f"can't listen on 127.0.0.1:{port}"):
            await second.start()
