"""What a client may get wrong, each with its status, while another stream goes on."""

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from fabric.core.errors import InvalidRequest, ModelNotFound, Overloaded
from fabric.rpc.status import from_rpc_error
from fabric.rpc.v1 import inference_pb2 as pb
from tests.integration.fake_engine import MAX_MODEL_LEN
from tests.integration.router_world import (
    MODEL,
    failure,
    running_world,
    spec,
    stream,
)

INVALID = grpc.StatusCode.INVALID_ARGUMENT


def chat(*messages):
    return pb.GenerationSpec(model=MODEL, chat=pb.ChatPrompt(messages=messages))


def ids(*token_ids):
    return pb.GenerationSpec(model=MODEL, token_ids=pb.TokenIds(ids=token_ids))


def scheduled(**options):
    return spec(scheduling=pb.SchedulingOptions(**options))


BAD = {
    "prompt": pb.GenerationSpec(model=MODEL),
    "prompt ": spec(""),
    "prompt  ": ids(),
    "prompt   ": spec("x" * MAX_MODEL_LEN),
    "prompt    ": spec("x" * 2_000_000),
    "prompt.token_ids[2]": ids(1, 2, 512, 600),
    "prompt.chat": chat(),
    "sampling.temperature": spec(sampling=pb.SamplingOptions(temperature=-1)),
    "sampling.temperature ": spec(sampling=pb.SamplingOptions(temperature=float("nan"))),
    "sampling.top_p": spec(sampling=pb.SamplingOptions(top_p=0)),
    "sampling.n": spec(sampling=pb.SamplingOptions(n=10_000)),
    "sampling.n ": spec(sampling=pb.SamplingOptions(n=0)),
    "sampling.logit_bias": spec(sampling=pb.SamplingOptions(logit_bias={600: 1.0})),
    "stopping.max_tokens": spec(stopping=pb.StoppingOptions(max_tokens=0)),
    "stopping.stop": spec(stopping=pb.StoppingOptions(stop=["x"] * 1_000_000)),
    "stopping.stop[0]": spec(stopping=pb.StoppingOptions(stop=[""])),
    "stopping.stop_token_ids": spec(stopping=pb.StoppingOptions(stop_token_ids=[512])),
    "output.logprobs": spec(output=pb.OutputOptions(logprobs=1000)),
    "request_id": spec(request_id="x" * 1000),
    "scheduling.tenant": scheduled(tenant="x" * 129),
    "scheduling.expected_tokens": scheduled(expected_tokens=0),
    "scheduling.expected_tokens ": scheduled(expected_tokens=MAX_MODEL_LEN + 1),
    "scheduling.objectives.ttft": scheduled(objectives=pb.Objectives(ttft=Duration())),
    "scheduling.objectives.tpot": scheduled(objectives=pb.Objectives(tpot=Duration(nanos=-1))),
    "scheduling.objectives.e2e": scheduled(objectives=pb.Objectives(e2e=Duration(seconds=2**62))),
    "cache.salt": spec(cache=pb.CacheOptions(salt="x" * 1000)),
}


async def test_each_bad_field_is_named_and_nothing_else_is_disturbed():
    async with running_world() as world:
        engine = world.groups[0].engine
        engine.going.clear()
        other = stream(world, spec(max_tokens=5))
        await anext(aiter(other))
        for field, message in BAD.items():
            error = await failure(stream(world, message))
            assert (error.code(), field) == (INVALID, field)
            typed = from_rpc_error(error)
            assert isinstance(typed, InvalidRequest)
            assert field.strip() in [violation.field for violation in typed.violations]
        engine.going.set()
        tokens = [token async for response in other for token in response.delta.token_ids]
        assert tokens == list(range(5))
        assert len(engine.submitted) == 1
        assert world.router.num_inflight == 0


async def test_an_unknown_model_is_not_found_and_the_served_ones_are_named():
    async with running_world() as world:
        error = await failure(stream(world, spec(model="other")))
        typed = from_rpc_error(error)
        assert error.code() == grpc.StatusCode.NOT_FOUND
        assert isinstance(typed, ModelNotFound)
        assert typed.model == "other"
        assert MODEL in typed.message


async def test_an_expected_model_that_is_not_loaded_yet_is_unavailable_with_a_hint():
    async with running_world(num_groups=0) as world:
        error = await failure(stream(world, spec()))
        assert error.code() == grpc.StatusCode.UNAVAILABLE
        assert from_rpc_error(error).retry_after_s == 1.0


async def test_a_message_over_the_limit_is_resource_exhausted():
    async with running_world(max_message_bytes=100_000) as world:
        error = await failure(stream(world, spec("x" * 200_000)))
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        answer = await world.stub.Generate(pb.GenerateRequest(spec=spec()))
        assert len(answer.sequences[0].token_ids) == 8


@pytest.mark.parametrize("method", ["GenerateStream", "Generate", "Tokenize", "GetModel"])
async def test_bytes_that_are_no_message_are_an_invalid_argument(method):
    async with running_world() as world:
        path = f"/fabric.rpc.v1.InferenceService/{method}"
        call = world.channel.unary_stream(path)(b"\xff\xff garbage \x00")
        error = await failure(call)
        assert error.code() == INVALID
        assert from_rpc_error(error).violations[0].field == "request"


async def test_an_empty_message_names_what_is_missing():
    async with running_world() as world:
        error = await failure(world.stub.GenerateStream(pb.GenerateStreamRequest()))
        assert from_rpc_error(error).violations[0].field == "prompt"


async def test_more_requests_than_allowed_are_refused_with_a_hint():
    async with running_world(max_inflight=1) as world:
        world.groups[0].engine.going.clear()
        first = stream(world, spec())
        await anext(aiter(first))
        error = await failure(stream(world, spec()))
        typed = from_rpc_error(error)
        assert isinstance(typed, Overloaded)
        assert typed.retry_after_s == 1.0


async def test_a_bug_is_internal_and_names_the_request_not_the_cause(monkeypatch, caplog):
    async with running_world() as world:
        monkeypatch.setattr(world.router._catalog, "served", lambda model: 1 / 0)
        call = stream(world, spec(), metadata=(("x-request-id", "r-17"),))
        error = await failure(call)
        assert error.code() == grpc.StatusCode.INTERNAL
        assert "r-17" in error.details()
        assert "division" not in error.details()
        assert "division" in caplog.text
