"""One TCP connection that carries frames, with bounded memory in both directions."""

import asyncio
import socket
from typing import Protocol, cast

from fabric.core.errors import ProtocolError
from fabric.rpc.frames import MAX_GREETING_BYTES, Frame, FrameCodec
from fabric.rpc.framing import LENGTH_BYTES
from fabric.rpc.liveness import notice_lost_host

MAX_UNREAD_BYTES = 64 * 2**20


class LinkPeer(Protocol):
    """Whoever handles what arrives on a connection; called on the event loop, must not block."""

    def on_open(self, link: "Link") -> None:
        """The connection stands."""
        ...

    def on_frame(self, frame: Frame) -> None:
        """A frame arrived; a ProtocolError raised here closes the connection."""
        ...

    def on_close(self, reason: str) -> None:
        """The connection is gone, by either side; called once."""
        ...


class Link(asyncio.Protocol):
    """Frames over one connection.

    A peer that sends anything but frames is disconnected, and so is one that doesn't read:
    no more than ``max_unread_bytes`` ever wait for it.
    """

    def __init__(
        self, peer: LinkPeer, codec: FrameCodec, max_unread_bytes: int = MAX_UNREAD_BYTES
    ) -> None:
        self._peer = peer
        self._codec = codec
        self._max_unread_bytes = max_unread_bytes
        # Raised by trust() once the peer has proved itself.
        self._max_frame_bytes = min(MAX_GREETING_BYTES, codec.max_frame_bytes)
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._reason = "the peer closed the connection"
        self.last_heard_s = 0.0

    def trust(self) -> None:
        """Allow frames of the full size from now on."""
        self._max_frame_bytes = self._codec.max_frame_bytes

    @property
    def is_open(self) -> bool:
        """Whether frames can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    @property
    def unsent_bytes(self) -> int:
        """What waits for the peer to read."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def send(self, frame: Frame) -> None:
        """Queue a frame; dropped if the connection is closed.

        Raises:
            ProtocolError: The frame is too long; nothing of it is sent.
        """
        self.send_bytes(self._codec.encode(frame))

    def send_bytes(self, data: bytes) -> None:
        """Queue a frame that is encoded already."""
        if self._transport is None or self._transport.is_closing():
            return
        self._transport.write(data)
        if self.unsent_bytes > self._max_unread_bytes:
            self.abort("the peer doesn't read")

    def close(self, reason: str) -> None:
        """Close after what is queued has been sent."""
        if self.is_open and self._transport is not None:
            self._reason = reason
            self._transport.close()

    def abort(self, reason: str) -> None:
        """Close at once; what is queued is lost."""
        if self._transport is not None:
            self._reason = reason
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        # Not checked: other event loops (Ray's is uvloop) have transports of their own.
        self._transport = cast(asyncio.Transport, transport)
        connection = transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            notice_lost_host(connection)
        self._peer.on_open(self)

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        self.last_heard_s = asyncio.get_running_loop().time()
        self._buffer += data
        try:
            self._take_frames()
        except ProtocolError as error:
            self._buffer.clear()
            self.abort(error.message)

    def connection_lost(self, error: Exception | None) -> None:
        """Called by asyncio."""
        self._transport = None
        self._peer.on_close(str(error) if error else self._reason)

    def _take_frames(self) -> None:
        start = 0
        while self.is_open and len(self._buffer) - start >= LENGTH_BYTES:
            body = start + LENGTH_BYTES
            length = int.from_bytes(self._buffer[start:body], "big")
            if length > self._max_frame_bytes:
                raise ProtocolError(
                    f"a frame of {length} bytes; at most {self._max_frame_bytes} are allowed now"
                )
            if len(self._buffer) - body < length:
                break
            start = body + length
            self._peer.on_frame(self._codec.decode(bytes(self._buffer[body:start])))
        del self._buffer[:start]
