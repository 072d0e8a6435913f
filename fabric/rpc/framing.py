"""Frames of any protocol of ours: four bytes of length, big endian, and msgpack [kind, body]."""

from typing import Any, Generic, TypeVar

import msgpack

from fabric.core.errors import ProtocolError
from fabric.rpc.codec import Codec

LENGTH_BYTES = 4
MAX_FRAME_BYTES = 16 * 2**20
MAX_ELEMENTS = 2**21

F = TypeVar("F")


class Framing(Generic[F]):
    """Frames to bytes and back; a frame's kind is its place among ``kinds``."""

    def __init__(
        self, kinds: tuple[type[Any], ...], max_frame_bytes: int = MAX_FRAME_BYTES
    ) -> None:
        self.max_frame_bytes = max_frame_bytes
        self._kinds = kinds
        codecs = [Codec(kind) for kind in kinds]
        self._encoders = {
            kind: (number, codecs[number].encode) for number, kind in enumerate(kinds)
        }
        self._decoders = [codec.decode for codec in codecs]

    def encode(self, frame: F) -> bytes:
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

    def decode(self, body: bytes) -> F:
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
            frame: F = self._decoders[number](content)
            return frame
        except ProtocolError as error:
            raise ProtocolError(f"{self._kinds[number].__name__}{error.message}") from None
