"""Protobuf messages and values are the same thing, both ways."""

import pytest

from fabric.core.errors import InvalidRequest
from fabric.core.generation import Completed, Generation, Sequence, Started
from fabric.core.prompt import ChatMessage, GenerationSpec, PromptChat, PromptText, PromptTokens
from fabric.core.request import (
    FinishReason,
    Objectives,
    PositionLogprobs,
    SequenceDelta,
    StopMatch,
    Timing,
    TokenLogprob,
    Usage,
)
from fabric.core.sampling import SamplingOverrides
from fabric.rpc import convert, convert_output
from fabric.rpc.v1 import inference_pb2 as pb

LOGPROBS = (PositionLogprobs(TokenLogprob(5, -0.5, 1), (TokenLogprob(5, -0.5, 1),)),)
FULL = SamplingOverrides(
    max_tokens=5,
    n=2,
    temperature=0.7,
    top_k=-1,
    top_p=0.95,
    min_p=0.05,
    repetition_penalty=1.1,
    presence_penalty=-0.5,
    frequency_penalty=0.3,
    logit_bias={3: -1.25, 9: 0.1},
    seed=2**64 - 1,
    min_tokens=1,
    stop=("\n", "END"),
    stop_token_ids=(2, 3),
    include_stop=True,
    ignore_eos=False,
    logprobs=0,
    skip_special_tokens=False,
)


@pytest.mark.parametrize(
    "prompt",
    [
        PromptText(""),
        PromptText("héllo"),
        PromptTokens(()),
        PromptTokens((1, 2, 2**32 - 1)),
        PromptChat((ChatMessage("user", "hi"), ChatMessage("assistant", ""))),
        PromptChat((), add_generation_prompt=False),
    ],
)
@pytest.mark.parametrize("sampling", [SamplingOverrides(), FULL])
def test_a_spec_comes_back_as_it_was_sent(prompt, sampling):
    spec = GenerationSpec("m", prompt, sampling, "id", -3, "salt")
    raw = convert.spec_to_proto(spec).SerializeToString()
    assert convert.spec_from_proto(pb.GenerationSpec.FromString(raw)) == spec


@pytest.mark.parametrize(
    "objectives",
    [Objectives(), Objectives(ttft_s=0.25), Objectives(1.5, 0.0625, 30.0, refuse_if_late=True)],
)
@pytest.mark.parametrize("expected_tokens", [None, 0, 512])
def test_how_to_schedule_comes_back_as_it_was_sent(objectives, expected_tokens):
    spec = GenerationSpec(
        "m",
        PromptText("x"),
        tenant="acme",
        objectives=objectives,
        expected_tokens=expected_tokens,
    )
    raw = convert.spec_to_proto(spec).SerializeToString()
    assert convert.spec_from_proto(pb.GenerationSpec.FromString(raw)) == spec


def test_what_is_absent_stays_absent():
    assert convert.spec_from_proto(pb.GenerationSpec(text="x")).sampling == SamplingOverrides()


def test_a_missing_prompt_is_named():
    with pytest.raises(InvalidRequest, match="prompt: is missing"):
        convert.spec_from_proto(pb.GenerationSpec(model="m"))


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        (SamplingOverrides(n=-1), "sampling.n"),
        (SamplingOverrides(max_tokens=2**40), "stopping.max_tokens"),
        (SamplingOverrides(stop_token_ids=(-1,)), "stopping.stop_token_ids"),
        (SamplingOverrides(logit_bias={-1: 1.0}), "sampling.logit_bias"),
        (SamplingOverrides(temperature="hot"), "sampling.temperature"),  # type: ignore[arg-type]
    ],
)
def test_a_value_that_fits_no_field_names_it(asked, field):
    with pytest.raises(InvalidRequest) as caught:
        convert.spec_to_proto(GenerationSpec("m", PromptText("x"), asked))
    assert caught.value.violations[0].field == field


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"tenant": 3}, "scheduling.tenant"),
        ({"expected_tokens": -1}, "scheduling.expected_tokens"),
        ({"objectives": Objectives(ttft_s=float("nan"))}, "scheduling.objectives.ttft"),
        ({"objectives": Objectives(e2e_s=float("inf"))}, "scheduling.objectives.e2e"),
        ({"objectives": Objectives(tpot_s=1e20)}, "scheduling.objectives.tpot"),
    ],
)
def test_a_scheduling_option_that_fits_no_field_is_named(fields, field):
    with pytest.raises(InvalidRequest) as caught:
        convert.spec_to_proto(GenerationSpec("m", PromptText("x"), **fields))
    assert caught.value.violations[0].field == field


@pytest.mark.parametrize(
    "event",
    [
        Started("id", "m", 3, 2**64 - 1),
        SequenceDelta(0, 7, (5,), " x"),
        SequenceDelta(1, 0, (5, 6), "", LOGPROBS, FinishReason.STOP, StopMatch(token_id=0)),
        SequenceDelta(1, 0, (), "", (), FinishReason.STOP, StopMatch(text="END")),
        Completed(Usage(3, 4), Timing(swapped_s=0.125, swapped_bytes=2**40, recomputed_tokens=7)),
        Completed(Usage(3, 4, 2), Timing(0.5, 0.25, 0.75, 1.5, 2.25, 3, group="left", load_s=0.5)),
    ],
)
def test_an_event_comes_back_as_it_was_sent(event):
    raw = convert_output.event_to_proto(event).SerializeToString()
    assert convert_output.event_from_proto(pb.GenerateStreamResponse.FromString(raw)) == event


def test_an_event_of_a_later_version_is_no_event():
    assert convert_output.event_from_proto(pb.GenerateStreamResponse()) is None


def test_a_generation_comes_back_as_it_was_sent():
    sequences = (
        Sequence(0, "a", (1,), FinishReason.LENGTH, LOGPROBS),
        Sequence(1, "b", (2,), FinishReason.STOP, (), StopMatch(text="b")),
    )
    answer = Generation("id", "m", sequences, Usage(1, 2), Timing(group="left"), 9)
    message = convert_output.generation_to_proto(answer)
    assert convert_output.generation_from_proto(message) == answer
