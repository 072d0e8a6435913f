"""A small HTTP endpoint for Prometheus, on the event loop that owns what it tells."""

import asyncio
from collections.abc import Iterable
from http import HTTPStatus

from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from fabric.core.errors import ConfigError

MAX_HEAD_BYTES = 16 * 2**10
HEAD_TIMEOUT_S = 5.0


class MetricsServer:
    """Answers ``GET /metrics`` with what a collector has; one request a connection."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; return the bound port.

        Raises:
            ConfigError: The address can't be bound.
        """
        try:
            self._server = await asyncio.start_server(self._serve, host, port, limit=MAX_HEAD_BYTES)
        except OSError as error:
            raise ConfigError(f"metrics can't be served on {host}:{port}: {error}") from error
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(HEAD_TIMEOUT_S):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(await self._answer(head))
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            # Not HTTP, or a reader that is gone or too slow: nobody to answer.
            writer.transport.abort()
        finally:
            writer.close()

    async def _answer(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if method not in (b"GET", b"HEAD"):
            return _response(HTTPStatus.METHOD_NOT_ALLOWED, b"", b"Allow: GET, HEAD\r\n")
        if path != b"/metrics":
            return _response(HTTPStatus.NOT_FOUND, b"see /metrics\n")
        body = await self._text() if method == b"GET" else b""
        kind = f"Content-Type: {CONTENT_TYPE_PLAIN_0_0_4}\r\n".encode()
        return _response(HTTPStatus.OK, body, kind)

    async def _text(self) -> bytes:
        # Figures belong to this event loop; making text of them takes four times as long.
        figures = _Snapshot(tuple(self._collector.collect()))
        return await asyncio.to_thread(generate_latest, figures)


class _Snapshot(Collector):
    """Metrics as they were."""

    def __init__(self, metrics: tuple[Metric, ...]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _response(status: HTTPStatus, body: bytes, headers: bytes = b"") -> bytes:
    line = f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode()
    length = f"Content-Length: {len(body)}\r\nConnection: close\r\n".encode()
    return line + headers + length + b"\r\n" + body
