"""The options that say which fabric a command talks to."""

import argparse
from pathlib import Path

from fabric.client import AsyncClient, RetryPolicy, TlsOptions
from fabric.client.aio import DEFAULT_TARGET


def add_connection_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--target`` and the TLS options."""
    group = parser.add_argument_group("connection")
    group.add_argument("--target", default=DEFAULT_TARGET, help="router's address (%(default)s)")
    group.add_argument("--tls", action="store_true", help="encrypt, trusting the system's roots")
    group.add_argument("--tls-ca", type=Path, metavar="PEM", help="encrypt, trusting these roots")
    group.add_argument("--tls-cert", type=Path, metavar="PEM", help="own certificate (mutual TLS)")
    group.add_argument("--tls-key", type=Path, metavar="PEM", help="own private key (mutual TLS)")


def connect(args: argparse.Namespace, retry: RetryPolicy | None = None) -> AsyncClient:
    """A client for the fabric that the options name; call it inside an event loop."""
    uses_tls = args.tls or args.tls_ca or args.tls_cert
    tls = TlsOptions(args.tls_ca, args.tls_cert, args.tls_key) if uses_tls else None
    return AsyncClient(args.target, tls=tls, retry=retry)
