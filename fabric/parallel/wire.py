"""Frames between a rendezvous and its clients: a length, then a msgpack array."""

import hmac
import secrets
import socket
from typing import Any

import msgpack

from fabric.core.errors import ProtocolError
from fabric.parallel.store import MAX_VALUE_BYTES

MAX_FRAME_BYTES = MAX_VALUE_BYTES + 4096
NONCE_BYTES = 32
_LENGTH_BYTES = 4


def send_frame(connection: socket.socket, fields: list[Any]) -> None:
    """Send one frame."""
    body = msgpack.packb(fields)
    connection.sendall(len(body).to_bytes(_LENGTH_BYTES, "big") + body)


def recv_frame(connection: socket.socket) -> list[Any]:
    """Receive one frame.

    Raises:
        ProtocolError: It is too long or not an array.
        OSError: The connection ended.
    """
    length = int.from_bytes(_recv_exactly(connection, _LENGTH_BYTES), "big")
    if length > MAX_FRAME_BYTES:
        raise ProtocolError(f"a frame of {length} bytes; at most {MAX_FRAME_BYTES} are allowed")
    try:
        fields = msgpack.unpackb(_recv_exactly(connection, length))
    except (ValueError, msgpack.UnpackException) as error:
        raise ProtocolError(f"a frame isn't msgpack: {error}") from error
    if not isinstance(fields, list):
        raise ProtocolError("a frame isn't an array")
    return fields


def let_in(connection: socket.socket, secret: str) -> None:
    """Make a client prove that it knows the secret, before anything else is read from it.

    Raises:
        ProtocolError: It doesn't.
        OSError: The connection ended, or its timeout passed.
    """
    nonce = secrets.token_bytes(NONCE_BYTES)
    connection.sendall(nonce)
    proof = _recv_exactly(connection, NONCE_BYTES)
    if not hmac.compare_digest(proof, _proof(secret, nonce)):
        raise ProtocolError("a client doesn't know the secret")


def prove_secret(connection: socket.socket, secret: str) -> None:
    """Answer the server's question for the secret.

    Raises:
        OSError: The connection ended.
    """
    connection.sendall(_proof(secret, _recv_exactly(connection, NONCE_BYTES)))


def _proof(secret: str, nonce: bytes) -> bytes:
    return hmac.digest(secret.encode(), b"llm-fabric rendezvous 1 " + nonce, "sha256")


def _recv_exactly(connection: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise ConnectionError("the peer closed the connection")
        data += part
    return bytes(data)
