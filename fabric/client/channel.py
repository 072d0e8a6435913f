"""The gRPC channel to a router."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio

from fabric.core.errors import ConfigError

MAX_MESSAGE_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """How the connection is secured; all files are PEM.

    Attributes:
        ca_file: Certificates that are trusted; the system's if None.
        cert_file: This client's certificate, for mutual TLS.
        key_file: Its private key.
        server_name: The name that the server's certificate must have, if not the target's.
    """

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    server_name: str | None = None


def open_channel(target: str, tls: TlsOptions | None) -> grpc.aio.Channel:
    """Open a channel; it connects when it is first used.

    Raises:
        ConfigError: A TLS file can't be read.
        RuntimeError: No event loop runs in this thread.
    """
    # Without one, grpc.aio would quietly bind the channel to a loop that never runs.
    asyncio.get_running_loop()
    options = _channel_options(tls)
    if tls is None:
        return grpc.aio.insecure_channel(target, options=options)
    credentials = grpc.ssl_channel_credentials(
        root_certificates=_read(tls.ca_file),
        private_key=_read(tls.key_file),
        certificate_chain=_read(tls.cert_file),
    )
    return grpc.aio.secure_channel(target, credentials, options=options)


def _channel_options(tls: TlsOptions | None) -> list[tuple[str, str | int]]:
    options: list[tuple[str, str | int]] = [
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        # A generation may be silent for long: pings find a dead peer, and keep NATs open.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.max_pings_without_data", 0),
        # A restarted router is found within our retries; gRPC's own backoff starts at 1 s.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
    ]
    if tls is not None and tls.server_name is not None:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    return options


def _read(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the TLS file {path}: {error}") from error
