"""The frames of the link between a router and a device group, and their bytes.

A frame is four bytes of length, big endian, and a msgpack array [kind, body]. The server speaks
first: Challenge, then the router's Hello, then Welcome; from then on the router sends Submit,
Cancel, Drain and Ping, and the group one Step for each engine step that has something for this
router, and a Report now and then. The router's questions, Explain, SetPolicy and SetResidence, have
numbers that are never reused on a connection; each is answered once, by Explained, PolicySet,
ResidenceSet or Refused.
"""

from dataclasses import dataclass

from fabric.core.errors import FieldViolation
from fabric.core.request import (
    GenerationRequest,
    LoadReport,
    SequenceDelta,
    ServedModel,
    Timing,
    Usage,
)
from fabric.core.status import RequestStatus
from fabric.core.weights import WeightState
from fabric.rpc.framing import MAX_FRAME_BYTES, Framing

VERSION = 4
# Before the peer has proved that it knows the secret, it may send only this much.
MAX_GREETING_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Challenge:
    """From the group, first: what the router must prove itself over."""

    version: int
    nonce: bytes


@dataclass(frozen=True, slots=True)
class Hello:
    """From the router: its proof, and what the group must prove itself over."""

    version: int
    router_id: str
    nonce: bytes
    proof: bytes


@dataclass(frozen=True, slots=True)
class Welcome:
    """From the group: its own proof, who it is, and what it serves."""

    version: int
    proof: bytes
    group: str
    epoch: int
    models: tuple[ServedModel, ...]


@dataclass(frozen=True, slots=True)
class Submit:
    """From the router: a request; ``stream`` names it on this connection and is never reused."""

    stream: int
    request: GenerationRequest


@dataclass(frozen=True, slots=True)
class Cancel:
    """From the router: nobody waits for this stream any more."""

    stream: int


@dataclass(frozen=True, slots=True)
class Failure:
    """A RequestError on the wire; ``kind`` is its class name."""

    kind: str
    message: str
    violations: tuple[FieldViolation, ...] = ()
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class StreamOutput:
    """What one step did for one stream; the last one carries usage and timing, or a failure."""

    stream: int
    deltas: tuple[SequenceDelta, ...]
    usage: Usage | None
    timing: Timing | None
    failure: Failure | None


@dataclass(frozen=True, slots=True)
class Step:
    """From the group: what one engine step did for all streams of this connection."""

    epoch: int
    outputs: tuple[StreamOutput, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """From the group: its load, also when idle; its silence is a sign of trouble."""

    epoch: int
    load: LoadReport


@dataclass(frozen=True, slots=True)
class Drain:
    """Takes nothing new: asked for by a router, told by the group to all of its routers."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Goodbye:
    """Either side closes on purpose; ``reason`` is for people."""

    reason: str


@dataclass(frozen=True, slots=True)
class Ping:
    """From the router, several times a second: bytes that a lost host doesn't acknowledge."""


@dataclass(frozen=True, slots=True)
class Explain:
    """From the router: where are the requests, or those of one id; tell of ``limit`` at most."""

    question: int
    request_id: str
    limit: int


@dataclass(frozen=True, slots=True)
class SetPolicy:
    """From the router: schedule by this policy from now on, with these numbers of its own."""

    question: int
    policy: str
    numbers: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class SetResidence:
    """From the router: bring a model's weights to ``state``, and pin them or not; None: as is."""

    question: int
    model: str
    state: WeightState | None
    pinned: bool | None


@dataclass(frozen=True, slots=True)
class ResidenceSet:
    """From the group: it has begun; where the weights are now, and why they can't go on if so.

    They came to the device ``num_loads`` times so far.
    """

    epoch: int
    question: int
    state: WeightState
    pinned: bool
    num_loads: int
    error: str


@dataclass(frozen=True, slots=True)
class Explained:
    """From the group: requests of all routers, by their clients' ids, and how many it left out."""

    epoch: int
    question: int
    requests: tuple[RequestStatus, ...]
    num_omitted: int


@dataclass(frozen=True, slots=True)
class PolicySet:
    """From the group: the policy before and now."""

    epoch: int
    question: int
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Refused:
    """From the group: why it can't answer a question."""

    epoch: int
    question: int
    failure: Failure


Question = Explain | SetPolicy | SetResidence
Answer = Explained | PolicySet | ResidenceSet | Refused
Frame = (
    Challenge
    | Hello
    | Welcome
    | Submit
    | Cancel
    | Step
    | Report
    | Drain
    | Goodbye
    | Ping
    | Question
    | Answer
)


KINDS: tuple[type[Frame], ...] = (
    Challenge,
    Hello,
    Welcome,
    Submit,
    Cancel,
    Step,
    Report,
    Drain,
    Goodbye,
    Ping,
    Explain,
    SetPolicy,
    Explained,
    PolicySet,
    Refused,
    SetResidence,
    ResidenceSet,
)


class FrameCodec(Framing[Frame]):
    """The link's frames to bytes and back."""

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        super().__init__(KINDS, max_frame_bytes)
