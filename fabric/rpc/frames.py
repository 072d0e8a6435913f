"""The frames of the link between a router and a device group, and their bytes.

A frame is four bytes of length, big endian, and a msgpack array [kind, body]. The server speaks
first: Challenge, then the router's Hello, then Welcome; from then on the router sends Submit,
Cancel and Drain, and the group one Step for each engine step that has something for this
router, and a Report now and then.
"""

from dataclasses import dataclass

import msgpack

from fabric.core.errors import FieldViolation, ProtocolError
from fabric.core.request import (
    GenerationRequest,
    LoadReport,
    SequenceDelta,
    ServedModel,
    Timing,
    Usage,
)
from fabric.rpc.codec import Codec

VERSION = 1
LENGTH_BYTES = 4
MAX_FRAME_BYTES = 16 * 2**20
# Before the peer has proved that it knows the secret, it may send only this much.
MAX_GREETING_BYTES = 4096
MAX_ELEMENTS = 2**21


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


Frame = Challenge | Hello | Welcome | Submit | Cancel | Step | Report | Drain | Goodbye


class FrameCodec:
    """Frames to bytes and back; a frame's kind is its place in ``KINDS``."""

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
    )

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self.max_frame_bytes = max_frame_bytes
        codecs = [Codec(kind) for kind in self.KINDS]
        self._encoders = {
            kind: (number, codecs[number].encode) for number, kind in enumerate(self.KINDS)
        }
        self._decoders = [codec.decode for codec in codecs]

    def encode(self, frame: Frame) -> bytes:
        """The frame's bytes, length included.

        Raises:
            ProtocolError: It is longer than ``max_frame_bytes``.
        """
        number, encode = self._encoders[type(frame)]
        body: bytes = msgpack.packb((number, encode(frame)))
        if len(body) > self.max_frame_bytes:
            raise ProtocolError(
                f"{type(frame).__name__} has {len(body)} bytes; at most {self.max_frame_bytes}"
            )
        return len(body).to_bytes(LENGTH_BYTES, "big") + body

    def decode(self, body: bytes) -> Frame:
        """The frame in ``body``, which is without its length.

        Raises:
            ProtocolError: The bytes are no frame; names what is wrong.
        """
        try:
            plain = msgpack.unpackb(
                body,
                max_array_len=MAX_ELEMENTS,
                max_map_len=0,
                max_ext_len=0,
                strict_map_key=True,
            )
        except (ValueError, msgpack.UnpackException, RecursionError) as error:
            raise ProtocolError(f"not msgpack within bounds: {error}") from error
        if type(plain) is not list or len(plain) != 2 or type(plain[0]) is not int:
            raise ProtocolError("a frame is an array of kind and body")
        number, content = plain
        if not 0 <= number < len(self._decoders):
            raise ProtocolError(f"unknown kind of frame {number}")
        try:
            return self._decoders[number](content)
        except ProtocolError as error:
            raise ProtocolError(f"{self.KINDS[number].__name__}{error.message}") from None
