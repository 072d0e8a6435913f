"""Proof that a peer on the link knows the shared secret, without sending it."""

import hmac
import secrets
from enum import StrEnum

from fabric.core.errors import ProtocolError

NONCE_BYTES = 32


class Role(StrEnum):
    """Who proves itself; part of what is signed, so that a proof can't be mirrored."""

    ROUTER = "router"
    GROUP = "group"
    SHARD = "shard"


def new_nonce() -> bytes:
    """Random bytes that a peer must sign."""
    return secrets.token_bytes(NONCE_BYTES)


def prove(secret: str, role: Role, group_nonce: bytes, router_nonce: bytes) -> bytes:
    """The HMAC-SHA256 over both sides' nonces.

    Raises:
        ProtocolError: A nonce has a wrong length, so that two could be confused.
    """
    if len(group_nonce) != NONCE_BYTES or len(router_nonce) != NONCE_BYTES:
        raise ProtocolError(f"a nonce has {NONCE_BYTES} bytes")
    message = b"llm-fabric link 1 " + role.value.encode() + group_nonce + router_nonce
    return hmac.digest(secret.encode(), message, "sha256")


def is_proof(proof: bytes, secret: str, role: Role, nonces: tuple[bytes, bytes]) -> bool:
    """Whether ``proof`` is the role's over (group's nonce, router's nonce); in constant time."""
    return hmac.compare_digest(proof, prove(secret, role, *nonces))
