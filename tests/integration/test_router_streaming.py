"""Streams through a real router and link, from engines that are fakes."""

import asyncio

import grpc
import pytest

from fabric.core.request import FinishReason, RequestOutput, SequenceDelta, Timing, Usage
from fabric.rpc.v1 import control_pb2
from fabric.rpc.v1 import inference_pb2 as pb
from tests.integration.router_world import (
    MODEL,
    cancelled_id,
    first_token,
    running_world,
    spec,
    stream,
)


def kinds(responses):
    return [response.WhichOneof("event") for response in responses]


async def test_a_stream_starts_then_has_every_token_once_then_completes():
    async with running_world() as world:
        responses = [response async for response in stream(world, spec("hello", max_tokens=50))]
        deltas = [response.delta for response in responses[1:-1]]
        assert kinds(responses) == ["started", *["delta"] * len(deltas), "completed"]
        assert responses[0].started.prompt_tokens == 6
        assert [token for delta in deltas for token in delta.token_ids] == list(range(50))
        assert "".join(delta.text for delta in deltas) == "".join(f"{i} " for i in range(50))
        assert deltas[-1].finish_reason == pb.FINISH_REASON_LENGTH
        assert responses[-1].completed.usage.completion_tokens == 50
        assert responses[-1].completed.timing.group == "left"


async def test_sequences_of_one_request_stay_apart():
    async with running_world() as world:
        message = spec(max_tokens=20, sampling=pb.SamplingOptions(n=2))
        found = {0: [], 1: []}
        async for response in stream(world, message):
            if response.WhichOneof("event") == "delta":
                found[response.delta.index].extend(response.delta.token_ids)
        assert found == {0: list(range(20)), 1: list(range(20))}


async def test_tokens_that_a_slow_client_lets_pile_up_arrive_merged():
    async with running_world() as world:
        call = stream(world, spec(max_tokens=200))
        await anext(aiter(call))
        status = await world.status()
        while status.outcomes.get("length") != 1:
            status = await world.status()
        deltas = [r.delta async for r in call if r.WhichOneof("event") == "delta"]
        assert sum(len(delta.token_ids) for delta in deltas) == 200
        assert len(deltas) < 200


async def test_generate_collects_the_whole_answer_and_repeats_with_its_seed():
    async with running_world() as world:
        message = spec(max_tokens=4, sampling=pb.SamplingOptions(n=2, seed=17))
        answer = await world.stub.Generate(pb.GenerateRequest(spec=message))
        assert [list(s.token_ids) for s in answer.sequences] == [[0, 1, 2, 3]] * 2
        assert [s.index for s in answer.sequences] == [0, 1]
        assert answer.seed == 17
        assert world.groups[0].engine.submitted[0].sampling.seed == 17


async def test_a_chat_prompt_reaches_the_engine_as_its_template_renders_it():
    async with running_world() as world:
        chat = pb.ChatPrompt(messages=[pb.ChatMessage(role="user", content="hi")])
        message = pb.GenerationSpec(model=MODEL, chat=chat)
        message.stopping.max_tokens = 1
        await world.stub.Generate(pb.GenerateRequest(spec=message))
        ids = world.groups[0].engine.submitted[0].prompt_token_ids
        assert ids == (1, *(ord(c) for c in "u:hi"))


async def test_the_request_id_of_the_metadata_is_echoed():
    async with running_world() as world:
        call = stream(world, spec(), metadata=(("x-request-id", "mine"),))
        assert dict(await call.initial_metadata())["x-request-id"] == "mine"
        responses = [response async for response in call]
        assert responses[0].started.request_id == "mine"
        assert world.groups[0].engine.submitted[0].request_id.endswith(":mine")


async def test_the_same_request_id_twice_is_two_requests():
    async with running_world() as world:
        calls = [stream(world, spec(request_id="same", max_tokens=30)) for _ in range(2)]
        answers = await asyncio.gather(*(collect(call) for call in calls))
        assert answers == [list(range(30))] * 2


async def collect(call):
    responses = [response async for response in call]
    return [token for response in responses for token in response.delta.token_ids]


async def test_a_cancelled_call_is_cancelled_in_the_engine():
    async with running_world() as world:
        engine = world.groups[0].engine
        engine.is_pausing = True
        call = stream(world, spec())
        await first_token(call)
        call.cancel()
        assert await cancelled_id(world.groups[0]) == engine.submitted[0].request_id
        assert world.router.num_inflight == 0
        assert world.groups[0].link.num_streams == 0


async def test_a_deadline_reaches_the_engine_and_ends_the_call():
    async with running_world() as world:
        engine = world.groups[0].engine
        engine.going.clear()
        call = stream(world, spec(), timeout=0.3)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await first_token(call)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        timeout_s = engine.submitted[0].timeout_s
        assert timeout_s is not None
        # gRPC rounds a deadline to its next tick.
        assert 0 < timeout_s < 0.31
        await cancelled_id(world.groups[0])
        assert world.router.num_inflight == 0


async def test_tokens_before_the_deadline_are_streamed_before_the_call_ends_with_it():
    async with running_world() as world:
        (group,) = world.groups
        group.engine.going.clear()
        call = aiter(stream(world, spec()))
        await anext(call)
        name = group.engine.submitted[0].request_id
        last = SequenceDelta(0, 0, (7,), "x", (), FinishReason.DEADLINE)
        group.link.publish([RequestOutput(name, (last,), Usage(6, 1), Timing())])
        assert (await anext(call)).delta.finish_reason == pb.FINISH_REASON_DEADLINE
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await anext(call)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_call_without_a_deadline_has_none_in_the_engine():
    async with running_world() as world:
        await world.stub.Generate(pb.GenerateRequest(spec=spec()))
        assert world.groups[0].engine.submitted[0].timeout_s is None


async def test_a_long_prompt_does_not_hold_up_other_streams():
    async with running_world() as world:
        text = "x" * 3_000_000
        long = world.stub.Tokenize(pb.TokenizeRequest(model=MODEL, text=text))
        assert await collect(stream(world, spec(max_tokens=5))) == list(range(5))
        assert len((await long).token_ids) == 3_000_001


async def test_tokenize_and_detokenize_are_each_others_reverse():
    async with running_world() as world:
        asked = pb.TokenizeRequest(model=MODEL, text="hey", add_special_tokens=False)
        ids = (await world.stub.Tokenize(asked)).token_ids
        answer = await world.stub.Detokenize(pb.DetokenizeRequest(model=MODEL, token_ids=ids))
        assert answer.text == "hey"


async def test_models_are_listed_with_the_groups_that_serve_them():
    async with running_world(num_groups=2, model_ids=(MODEL, "later")) as world:
        models = (await world.stub.ListModels(pb.ListModelsRequest())).models
        assert [model.id for model in models] == ["later", MODEL]
        assert models[0].state == pb.MODEL_STATE_LOADING
        one = (await world.stub.GetModel(pb.GetModelRequest(model=MODEL))).model
        assert one.state == pb.MODEL_STATE_READY
        assert one.vocab_size == 512


async def test_requests_go_to_the_least_loaded_group():
    async with running_world(num_groups=2) as world:
        while len((await world.status()).groups) < 2 or not all(
            group.state == control_pb2.DEVICE_GROUP_STATE_READY
            for group in (await world.status()).groups
        ):
            await asyncio.sleep(0)
        for group in world.groups:
            group.engine.going.clear()
        calls = [stream(world, spec()) for _ in range(4)]
        for call in calls:
            await anext(aiter(call))
        assert [len(group.engine.submitted) for group in world.groups] == [2, 2]
        for group in world.groups:
            group.engine.going.set()
        for call in calls:
            assert await collect(call) == list(range(8))


async def test_status_counts_what_runs_and_how_requests_ended():
    async with running_world() as world:
        await world.stub.Generate(pb.GenerateRequest(spec=spec()))
        with pytest.raises(grpc.aio.AioRpcError):
            await world.stub.Generate(pb.GenerateRequest(spec=spec(model="other")))
        status = await world.status()
        assert status.outcomes == {"length": 1, "NOT_FOUND": 1}
        assert status.num_inflight == 0
        assert status.groups[0].num_blocks == 8


async def test_a_draining_router_finishes_what_it_has_and_takes_nothing_new():
    async with running_world() as world:
        engine = world.groups[0].engine
        engine.going.clear()
        call = stream(world, spec())
        await anext(aiter(call))
        assert await world.router.drain(0.01) == 1
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await anext(aiter(stream(world, spec())))
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        engine.going.set()
        assert await collect(call) == list(range(8))
        assert await world.router.drain(5) == 0


async def test_a_drained_group_leaves_its_work_to_the_other():
    async with running_world(num_groups=2) as world:
        answer = await world.control.Drain(control_pb2.DrainRequest(group="left"))
        assert answer.drained
        for _ in range(3):
            await world.stub.Generate(pb.GenerateRequest(spec=spec()))
        assert [len(group.engine.submitted) for group in world.groups] == [0, 3]
        states = {group.name: group.state for group in (await world.status()).groups}
        assert states["left"] == control_pb2.DEVICE_GROUP_STATE_DRAINING
