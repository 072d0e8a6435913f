"""The async client against a fake router over a real socket."""

import asyncio

import pytest

from fabric.client import (
    AsyncClient,
    ChatMessage,
    Completed,
    DeadlineExceeded,
    DrainOutcome,
    FieldViolation,
    FinishReason,
    GroupState,
    InvalidRequest,
    ModelNotFound,
    ModelState,
    Overloaded,
    ProtocolError,
    RequestCancelled,
    RetryPolicy,
    SequenceDelta,
    Started,
    Unavailable,
)
from fabric.core.prompt import PromptChat, PromptText, PromptTokens
from tests.unit.fake_router import COMPLETED, HANG, STARTED, TWO_TOKENS, delta, serving

QUICK = RetryPolicy(max_attempts=3, initial_backoff_s=0.001)


@pytest.fixture
async def router():
    async with serving() as fake:
        yield fake


@pytest.fixture
async def client(router):
    async with AsyncClient(router.target, retry=QUICK) as connected:
        yield connected


async def test_stream_yields_started_then_deltas_then_completed(router, client):
    router.scripts = [TWO_TOKENS]
    events = [event async for event in client.stream("tiny", "Say hello")]
    assert [type(event) for event in events] == [Started, SequenceDelta, SequenceDelta, Completed]
    assert events == list(TWO_TOKENS)


async def test_stream_result_puts_the_answer_together(router, client):
    router.scripts = [TWO_TOKENS]
    async with client.stream("tiny", "Say hello") as stream:
        pieces = [piece async for piece in stream.text()]
    assert pieces == ["Hello", " world"]
    assert stream.result.text == "Hello world"
    assert stream.result.sequences[0].token_ids == (0, 1)
    assert stream.result.sequences[0].finish_reason is FinishReason.LENGTH
    assert stream.result.seed == 7
    assert stream.result.timing.group == "left"


async def test_several_sequences_are_kept_apart(router, client):
    router.scripts = [
        (STARTED, delta(0, "b", last=True, index=1), delta(0, "a", last=True), COMPLETED)
    ]
    result = await client.stream("tiny", "x", n=2).collect()
    assert [sequence.text for sequence in result.sequences] == ["a", "b"]


async def test_unary_answer_equals_the_collected_stream(client):
    whole = await client.generate("tiny", "x", max_tokens=4)
    assert whole == await client.stream("tiny", "x", max_tokens=4).collect()


@pytest.mark.parametrize(
    ("prompt", "sent"),
    [
        ("text", PromptText("text")),
        ([1, 2], PromptTokens((1, 2))),
        ([{"role": "user", "content": "hi"}], PromptChat((ChatMessage("user", "hi"),))),
        ([ChatMessage("user", "hi")], PromptChat((ChatMessage("user", "hi"),))),
    ],
)
async def test_each_form_of_a_prompt_arrives(router, client, prompt, sent):
    await client.generate("tiny", prompt)
    assert router.specs[0].prompt == sent


async def test_options_arrive_and_absent_ones_stay_absent(router, client):
    await client.generate(
        "tiny", "x", max_tokens=2, temperature=0.0, stop="end", request_id="mine", priority=-1
    )
    spec = router.specs[0]
    assert (spec.request_id, spec.priority, spec.sampling.stop) == ("mine", -1, ("end",))
    assert (spec.sampling.max_tokens, spec.sampling.temperature) == (2, 0.0)
    assert spec.sampling.top_p is None


async def test_metadata_goes_with_every_call(router):
    async with AsyncClient(router.target, metadata=[("authorization", "Bearer x")]) as client:
        await client.generate("tiny", "x")
    assert router.metadata[0]["authorization"] == "Bearer x"


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequest([FieldViolation("sampling.n", "is 99"), FieldViolation("prompt", "empty")]),
        ModelNotFound("tiny", ("other",)),
        Overloaded("the queue is full", 2.5),
    ],
)
async def test_errors_are_those_of_the_server_with_their_details(router, client, error):
    router.scripts = [[error], [error]]
    with pytest.raises(type(error)) as unary:
        await client.generate("tiny", "x")
    with pytest.raises(type(error)) as streamed:
        await client.stream("tiny", "x").collect()
    for raised in (unary.value, streamed.value):
        assert raised.message == error.message
        assert raised.retry_after_s == error.retry_after_s
        assert getattr(raised, "violations", None) == getattr(error, "violations", None)


async def test_wrong_values_are_refused_before_they_are_sent(router, client):
    with pytest.raises(InvalidRequest, match=r"sampling\.temperature"):
        await client.generate("tiny", "x", temperature="hot")
    with pytest.raises(InvalidRequest, match=r"prompt\[1\]"):
        await client.generate("tiny", [{"role": "user", "content": "x"}, {"role": "user"}])
    with pytest.raises(InvalidRequest, match="token_ids"):
        await client.generate("tiny", [-1])
    with pytest.raises(InvalidRequest, match="token_ids"):
        await client.detokenize("tiny", [-1])
    with pytest.raises(InvalidRequest, match=r"prompt\.text"):
        await client.generate("tiny", "half a pair \udcff")
    with pytest.raises(TypeError, match="max_token"):
        await client.generate("tiny", "x", max_token=3)
    assert router.specs == []


async def test_unavailable_is_tried_again_before_the_first_token(router, client):
    router.scripts = [[Unavailable("starting")], [STARTED, Unavailable("died")], TWO_TOKENS]
    result = await client.stream("tiny", "x").collect()
    assert result.text == "Hello world"
    assert len(router.specs) == 3


async def test_a_stream_is_never_tried_again_after_a_token(router, client):
    router.scripts = [[STARTED, delta(0, "Hello"), Unavailable("died", 0.5)], TWO_TOKENS]
    stream = client.stream("tiny", "x")
    with pytest.raises(Unavailable) as raised:
        await stream.collect()
    assert raised.value.retry_after_s == 0.5
    assert len(router.specs) == 1


async def test_attempts_are_bounded(router, client):
    router.scripts = [[Unavailable("starting")]] * 5
    with pytest.raises(Unavailable):
        await client.generate("tiny", "x")
    assert len(router.specs) == QUICK.max_attempts


async def test_no_retry_where_the_servers_wish_is_longer_than_the_deadline(router, client):
    router.scripts = [[Unavailable("loading", 60.0)]]
    with pytest.raises(Unavailable):
        await client.generate("tiny", "x", timeout_s=5.0)
    assert len(router.specs) == 1


async def test_overload_is_not_tried_again(router, client):
    router.scripts = [[Overloaded("full")], TWO_TOKENS]
    with pytest.raises(Overloaded):
        await client.stream("tiny", "x").collect()
    assert len(router.specs) == 1


async def test_nobody_listening_is_unavailable():
    async with AsyncClient("127.0.0.1:1", retry=RetryPolicy(max_attempts=1)) as client:
        with pytest.raises(Unavailable):
            await client.models()


async def test_the_deadline_ends_a_stream_and_reaches_the_server(router, client):
    router.scripts = [[STARTED, HANG]]
    with pytest.raises(DeadlineExceeded):
        await client.stream("tiny", "x", timeout_s=0.2).collect()
    await asyncio.wait_for(router.cancelled.wait(), 5)


async def test_leaving_the_stream_cancels_the_request(router, client):
    router.scripts = [[STARTED, delta(0, "Hello"), HANG]]
    async with client.stream("tiny", "x") as stream:
        async for _ in stream.text():
            break
    await asyncio.wait_for(router.cancelled.wait(), 5)


async def test_cancelling_the_task_cancels_the_request(router, client):
    router.scripts = [[STARTED, HANG]]
    stream = client.stream("tiny", "x")
    await anext(stream)
    task = asyncio.create_task(stream.collect())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(router.cancelled.wait(), 5)


async def test_closing_a_stream_ends_its_reader_with_request_cancelled(router, client):
    router.scripts = [[STARTED, HANG]]
    stream = client.stream("tiny", "x")
    await anext(stream)
    task = asyncio.create_task(stream.collect())
    await asyncio.sleep(0)
    await stream.aclose()
    with pytest.raises(RequestCancelled):
        await task


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        ([STARTED, delta(0, "a"), delta(2, "c")], "token 2, but token 1 is next"),
        ([STARTED, delta(0, "a"), delta(0, "a")], "token 0, but token 1 is next"),
        ([STARTED, delta(0, "a", last=True), delta(1, "b")], "after its end"),
        ([STARTED, delta(0, "a"), COMPLETED], "before sequence 0 ended"),
        ([COMPLETED], "before it started"),
        ([STARTED, delta(0, "a")], "before the answer was complete"),
    ],
)
async def test_a_broken_stream_is_a_protocol_error(router, client, script, complaint):
    router.scripts = [script]
    with pytest.raises(ProtocolError, match=complaint):
        await client.stream("tiny", "x").collect()


async def test_an_unfinished_stream_has_no_result(client):
    with pytest.raises(ProtocolError):
        _ = client.stream("tiny", "x").result


async def test_tokens_and_text_are_converted_by_the_server(client):
    tokenized = await client.tokenize("tiny", "ab")
    assert (tokenized.token_ids, tokenized.max_model_len) == ((97, 98), 64)
    assert await client.detokenize("tiny", [97, 98]) == "ab"


async def test_models_and_status_are_described(client):
    (model,) = await client.models()
    assert model == await client.model("tiny")
    assert (model.card.vocab_size, model.state, model.groups) == (100, ModelState.READY, ("left",))
    status = await client.status()
    assert [group.state for group in status.groups] == [GroupState.READY, GroupState.DOWN]
    assert status.groups[0].load.num_free_blocks == 75
    assert status.outcomes == {"length": 4}


async def test_drain_names_its_group_and_timeout(router, client):
    assert await client.drain("left", timeout_s=1.5) == DrainOutcome(drained=True, num_inflight=0)
    assert router.drain_request.group == "left"
    assert router.drain_request.timeout.ToMilliseconds() == 1500
    await client.drain()
    assert not router.drain_request.HasField("timeout")


async def test_health_speaks_the_standard_protocol(client):
    assert await client.health()
    assert not await client.health("asleep")


def test_an_async_client_needs_a_running_loop():
    with pytest.raises(RuntimeError, match="no running event loop"):
        AsyncClient()
