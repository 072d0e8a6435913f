"""The link's frames: exact on the way, and nothing but frames gets through."""

import dataclasses

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.core import errors
from fabric.core.errors import FieldViolation, ProtocolError
from fabric.core.request import (
    FinishReason,
    GenerationRequest,
    LoadReport,
    ModelCard,
    Objectives,
    PositionLogprobs,
    SequenceDelta,
    ServedModel,
    StopMatch,
    Timing,
    TokenLogprob,
    Usage,
)
from fabric.core.sampling import GenerationDefaults, RequestLimits, SamplingParams
from fabric.core.status import RequestPhase, RequestStatus
from fabric.rpc.codec import Codec
from fabric.rpc.failures import error_of, failure_of
from fabric.rpc.frames import (
    KINDS,
    Cancel,
    Challenge,
    Drain,
    Explain,
    Explained,
    Failure,
    FrameCodec,
    Goodbye,
    Hello,
    Ping,
    PolicySet,
    Refused,
    Report,
    SetPolicy,
    Step,
    StreamOutput,
    Submit,
    Welcome,
)
from fabric.rpc.framing import LENGTH_BYTES

LOGPROBS = (PositionLogprobs(TokenLogprob(5, -0.5, 1), (TokenLogprob(5, float("-inf"), 1),)),)
DELTA = SequenceDelta(1, 2, (3, 4), "é", LOGPROBS, FinishReason.STOP, StopMatch(text="x"))
SAMPLING = SamplingParams(5, logit_bias=((1, 0.5),), stop=("a",), seed=2**64 - 1)
SCHEDULING = ("salt", "acme", Objectives(ttft_s=0.5), 64)
REQUEST = GenerationRequest("id", "m", (1, 2, 3), SAMPLING, 0.5, -1, *SCHEDULING)
CARD = ModelCard("m", "/path", 256, 512, "float32", "LlamaForCausalLM")
SERVED = ServedModel(CARD, GenerationDefaults(eos_token_ids=(2,)), RequestLimits(256, 512))
STATUS = RequestStatus("id", "m", RequestPhase.SWAPPED, "acme", 1, (0.0, 3.5), 2, tier="disk")
FRAMES = [
    Challenge(1, b"n" * 32),
    Hello(1, "router", b"n" * 32, b"p" * 32),
    Welcome(1, b"p" * 32, "left", 7, (SERVED,)),
    Submit(3, REQUEST),
    Cancel(3),
    Step(7, (StreamOutput(3, (DELTA,), Usage(1, 2, 3), Timing(0.5, group="left"), None),)),
    Step(7, (StreamOutput(3, (), None, None, Failure("Overloaded", "full", (), 1.0)),)),
    Report(7, LoadReport(1, 2, stalled_s=0.5)),
    Drain(7),
    Ping(),
    Goodbye("enough"),
    Explain(3, "id", 100),
    SetPolicy(4, "mlfq", (("alpha_s", 0.5),)),
    Explained(7, 3, (STATUS,), 2),
    PolicySet(7, 4, "fcfs", "mlfq"),
    Refused(7, 4, Failure("Unavailable", "stops", (), 1.0)),
]
CODEC = FrameCodec()


def plain(frame):
    return msgpack.unpackb(CODEC.encode(frame)[LENGTH_BYTES:])


@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: type(frame).__name__)
def test_a_frame_comes_back_as_it_was_sent(frame):
    data = CODEC.encode(frame)
    assert int.from_bytes(data[:LENGTH_BYTES], "big") == len(data) - LENGTH_BYTES
    assert CODEC.decode(data[LENGTH_BYTES:]) == frame


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda body: body[0].__setitem__(0, 99), "unknown kind of frame 99"),
        (lambda body: body[0].__setitem__(0, True), "an array of kind and body"),
        (lambda body: body[0].append(1), "an array of kind and body"),
        (lambda body: body[0][1].append(1), "Submit: 2 elements expected, found 3 elements"),
        (lambda body: body[0][1][1].pop(), "Submit.request: 10 elements expected, found 9"),
        (lambda body: body[0][1].__setitem__(0, "3"), "Submit.stream: int expected, found str"),
        (lambda body: body[0][1].__setitem__(0, True), "Submit.stream: int expected, found bool"),
        (
            lambda body: body[0][1][1][2].append(1.5),
            "Submit.request.prompt_token_ids: an array of int expected",
        ),
        (
            lambda body: body[0][1][1][3].__setitem__(2, "hot"),
            "Submit.request.sampling.temperature: float expected, found str",
        ),
        (lambda body: body[0][1].__setitem__(1, None), "Submit.request: 10 elements expected"),
    ],
)
def test_a_wrong_element_is_named(change, complaint):
    body = [plain(Submit(3, REQUEST))]
    change(body)
    with pytest.raises(ProtocolError, match=complaint):
        CODEC.decode(msgpack.packb(body[0]))


def test_an_unknown_finish_reason_is_refused():
    body = plain(FRAMES[5])
    body[1][1][0][1][0][5] = "bored"
    with pytest.raises(ProtocolError, match="a FinishReason expected"):
        CODEC.decode(msgpack.packb(body))


def test_a_frame_that_is_too_long_is_not_sent():
    with pytest.raises(ProtocolError, match=r"Goodbye has \d+ bytes; at most 100"):
        FrameCodec(max_frame_bytes=100).encode(Goodbye("x" * 200))


@pytest.mark.parametrize(
    "body",
    [
        b"\x91" * 100_000,
        msgpack.packb([8, {"a": 1}]),
        msgpack.packb([8, [msgpack.Timestamp(1)]]),
        msgpack.packb([8, ["x"]]) + b"\x00",
        b"\xdd\xff\xff\xff\xff",
    ],
    ids=["deep", "map", "extension", "trailing", "long"],
)
def test_what_the_schema_has_no_use_for_is_refused(body):
    with pytest.raises(ProtocolError):
        CODEC.decode(body)


@given(st.binary(max_size=200))
def test_random_bytes_are_a_frame_or_a_protocol_error(body):
    decode_or_refuse(body)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=8),
    max_leaves=30,
)


@given(st.integers(-1, len(KINDS)), VALUES)
def test_random_values_are_a_frame_or_a_protocol_error(kind, body):
    decode_or_refuse(msgpack.packb([kind, body]))


@given(st.sampled_from(FRAMES), st.data())
def test_a_mutated_frame_is_a_frame_or_a_protocol_error(frame, data):
    body = bytearray(CODEC.encode(frame)[LENGTH_BYTES:])
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    decode_or_refuse(bytes(body))


def decode_or_refuse(body):
    try:
        frame = CODEC.decode(body)
    except ProtocolError:
        return
    assert type(frame) in KINDS


@dataclasses.dataclass(frozen=True)
class Unspeakable:
    anything: dict[str, int]


def test_a_type_without_a_representation_is_refused_when_the_codec_is_built():
    with pytest.raises(TypeError, match="no representation"):
        Codec(Unspeakable)


@pytest.mark.parametrize(
    "error",
    [
        errors.InvalidRequest([FieldViolation("a", "b")]),
        errors.ModelNotFound("m"),
        errors.Overloaded("full", 1.0),
        errors.Unavailable("gone"),
        errors.DeadlineExceeded("late"),
        errors.RequestCancelled("left"),
        errors.InternalError("bug"),
    ],
)
def test_an_error_crosses_the_link_as_itself(error):
    found = error_of(failure_of(error))
    assert type(found) is type(error)
    assert found.message == error.message
    assert found.retry_after_s == error.retry_after_s
