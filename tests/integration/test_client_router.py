"""The client SDK and the commands against a real router, with scripted engines behind it."""

import asyncio
import json

import pytest

from fabric.cli import main
from fabric.client import (
    Client,
    DeadlineExceeded,
    GroupState,
    InvalidRequest,
    ModelNotFound,
    ModelState,
    Started,
    Unavailable,
)
from tests.integration.router_world import MODEL, cancelled_id


async def test_streams_and_whole_answers_agree(client):
    whole = await client.generate(MODEL, "hello", max_tokens=5, n=2, seed=3, request_id="a")
    streamed = await client.stream(
        MODEL, "hello", max_tokens=5, n=2, seed=3, request_id="b"
    ).collect()
    assert streamed.sequences == whole.sequences
    assert (streamed.usage, streamed.seed) == (whole.usage, whole.seed)
    assert whole.text == "0 1 2 3 4 "


async def test_wrong_requests_get_typed_errors_with_fields(client):
    with pytest.raises(ModelNotFound):
        await client.generate("unknown", "hello")
    with pytest.raises(InvalidRequest) as raised:
        await client.generate(MODEL, "hello", temperature=-1.0, n=10_000)
    fields = {violation.field for violation in raised.value.violations}
    assert fields == {"sampling.temperature", "sampling.n"}


async def test_leaving_a_stream_frees_the_request(world, client):
    world.groups[0].engine.going.clear()
    async with client.stream(MODEL, "hello") as stream:
        assert isinstance(await anext(stream), Started)
    assert await cancelled_id(world.groups[0])


async def test_the_deadline_reaches_the_router(world, client):
    world.groups[0].engine.going.clear()
    with pytest.raises(DeadlineExceeded):
        await client.generate(MODEL, "hello", timeout_s=0.2)


async def test_models_status_health_and_tokens(client):
    (model,) = await client.models()
    assert (model.card.model, model.state) == (MODEL, ModelState.READY)
    status = await client.status()
    assert [(group.name, group.state) for group in status.groups] == [("left", GroupState.READY)]
    assert await client.health()
    tokenized = await client.tokenize(MODEL, "ab")
    assert await client.detokenize(MODEL, tokenized.token_ids, skip_special_tokens=True) == "ab"


async def test_a_drained_router_is_unavailable(client):
    assert (await client.drain(timeout_s=1.0)).drained
    with pytest.raises(Unavailable):
        await client.generate(MODEL, "hello")


async def test_threads_share_a_sync_client(world):
    def work() -> str:
        with Client(world.target) as client:
            return client.stream(MODEL, "hello", max_tokens=3).collect().text

    texts = await asyncio.gather(*(asyncio.to_thread(work) for _ in range(4)))
    assert texts == ["0 1 2 "] * 4


async def test_the_bench_command_measures_the_router(world, tmp_path, capsys):
    path = tmp_path / "result.json"
    words = [
        *("bench", "serve", "--model", MODEL, "--target", world.target, "--num-prompts", "8"),
        *("--request-rate", "200", "--input-len", "6", "--output-len", "5", "--json", str(path)),
    ]
    assert await asyncio.to_thread(main, words) == 0
    result = json.loads(path.read_text())
    assert (result["completed"], result["total_output_tokens"]) == (8, 40)
    assert set(result["input_lens"]) == {6}
