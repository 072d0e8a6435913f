"""Bad requests to a real fabric: each has its error, others go on, and no block leaks."""

import asyncio
import math
from collections.abc import AsyncIterator

import grpc.aio
import pytest

from fabric.client import AsyncClient, InvalidRequest, ModelNotFound, Overloaded
from fabric.rpc.v1 import inference_pb2 as pb
from tests.e2e.live_fabric import MODEL, PROMPTS, collect, wait_until_idle

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]

STREAM = "/fabric.rpc.v1.InferenceService/GenerateStream"


@pytest.fixture
async def client(client: AsyncClient, expected: dict[str, list[int]]) -> AsyncIterator[AsyncClient]:
    """A client of a fabric that answers good requests all the time, and is idle afterwards."""
    good = [asyncio.create_task(collect(client, prompt)) for prompt in PROMPTS[:4]]
    yield client
    for prompt, generation in zip(PROMPTS, await asyncio.gather(*good), strict=False):
        assert list(generation.sequences[0].token_ids) == expected[prompt]
    await wait_until_idle(client)


async def test_each_bad_field_is_named(client: AsyncClient) -> None:
    bad = {
        "prompt": client.generate(MODEL, ""),
        "prompt.token_ids[2]": client.generate(MODEL, [1, 2, 99_999]),
        "sampling.temperature": client.generate(MODEL, "a", temperature=-1.0),
        "sampling.temperature ": client.generate(MODEL, "a", temperature=math.nan),
        "sampling.n": client.generate(MODEL, "a", n=10_000),
        "stopping.stop": client.generate(MODEL, "a", stop=["x"] * 1_000_000),
    }
    for field, call in bad.items():
        with pytest.raises(InvalidRequest) as caught:
            await call
        assert field.strip() in [violation.field for violation in caught.value.violations]


async def test_a_prompt_over_the_context_limit_is_told_the_limit(client: AsyncClient) -> None:
    with pytest.raises(InvalidRequest, match="512"):
        await client.generate(MODEL, "word " * 1000)


async def test_an_unknown_model_is_told_the_served_ones(client: AsyncClient) -> None:
    with pytest.raises(ModelNotFound, match=MODEL):
        await client.generate("gpt-17", "a")


async def test_a_prompt_of_100_megabytes_is_refused_by_the_client(client: AsyncClient) -> None:
    with pytest.raises(Overloaded):
        await client.generate(MODEL, "x" * 100_000_000)


@pytest.mark.usefixtures("client")
async def test_a_prompt_of_100_megabytes_is_refused_by_the_router(target: str) -> None:
    spec = pb.GenerationSpec(model=MODEL, text="x" * 100_000_000)
    message = pb.GenerateStreamRequest(spec=spec).SerializeToString()
    assert await status_of(target, message) == grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.usefixtures("client")
async def test_bytes_that_are_no_message_are_an_invalid_argument(target: str) -> None:
    assert await status_of(target, b"\xff\xff garbage \x00") == grpc.StatusCode.INVALID_ARGUMENT


async def status_of(target: str, message: bytes) -> grpc.StatusCode:
    """What becomes of raw bytes that are sent to GenerateStream."""
    options = [("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(target, options=options) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await anext(aiter(channel.unary_stream(STREAM)(message)))
        return caught.value.code()
