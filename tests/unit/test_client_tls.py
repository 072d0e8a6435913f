"""Encrypted connections, with a certificate on either side."""

import shutil
import subprocess
from pathlib import Path

import grpc
import grpc.aio
import pytest

from fabric.client import AsyncClient, RetryPolicy, TlsOptions, Unavailable
from fabric.rpc.v1 import inference_pb2_grpc
from tests.unit.fake_router import FakeRouter

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
NO_RETRY = RetryPolicy(max_attempts=1)


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A self-signed certificate for the name fabric.test, and its key."""
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "1", "-subj", "/CN=fabric.test", "-addext"),
            *("subjectAltName=DNS:fabric.test", "-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


@pytest.fixture
async def target(certificate):
    """A server that asks clients for a certificate."""
    roots, key = (path.read_bytes() for path in certificate)
    credentials = grpc.ssl_server_credentials([(key, roots)], roots, require_client_auth=True)
    server = grpc.aio.server()
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(FakeRouter(), server)
    port = server.add_secure_port("localhost:0", credentials)
    await server.start()
    yield f"localhost:{port}"
    await server.stop(None)


async def test_both_sides_prove_who_they_are(target, certificate):
    file, key = certificate
    tls = TlsOptions(file, file, key, server_name="fabric.test")
    async with AsyncClient(target, tls=tls, retry=NO_RETRY) as client:
        assert (await client.generate("tiny", "x", max_tokens=1)).text == " w0"


async def test_a_server_of_another_name_is_refused(target, certificate):
    file, key = certificate
    async with AsyncClient(target, tls=TlsOptions(file, file, key), retry=NO_RETRY) as client:
        with pytest.raises(Unavailable):
            await client.generate("tiny", "x")


async def test_plain_text_is_refused(target):
    async with AsyncClient(target, retry=NO_RETRY) as client:
        with pytest.raises(Unavailable):
            await client.generate("tiny", "x")
