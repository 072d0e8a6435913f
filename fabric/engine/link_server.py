"""The device group's end of the link: hands routers' requests to the engine, and tokens back."""

import asyncio
import itertools
import logging
import ssl
from collections.abc import Iterable
from dataclasses import dataclass, replace

from fabric.core.errors import InternalError, ProtocolError, RequestError, Unavailable
from fabric.core.request import RequestOutput
from fabric.engine.group_engine import GroupEngine
from fabric.engine.link_answers import answer_to, engine_id
from fabric.rpc.failures import failure_of
from fabric.rpc.frames import (
    VERSION,
    Cancel,
    Challenge,
    Drain,
    Explain,
    Frame,
    FrameCodec,
    Goodbye,
    Hello,
    Ping,
    Question,
    Report,
    SetPolicy,
    SetResidence,
    Step,
    StreamOutput,
    Submit,
    Welcome,
)
from fabric.rpc.link import Link
from fabric.rpc.secret import Role, is_proof, new_nonce, prove

logger = logging.getLogger(__name__)

MAX_QUESTIONS = 64


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """Who the group is, and where and how it listens for routers; port 0 takes a free one."""

    group: str
    epoch: int
    secret: str
    host: str = "127.0.0.1"
    port: int = 0
    report_interval_s: float = 0.25
    greeting_timeout_s: float = 5.0


@dataclass(frozen=True, slots=True)
class _Route:
    """Where a request's tokens go."""

    session: "_Session"
    stream: int


class _Shared:
    """What the server and the sessions of its connections know together."""

    def __init__(self, engine: GroupEngine, settings: LinkSettings) -> None:
        self.engine = engine
        self.settings = settings
        self.sessions: set[_Session] = set()
        self.routes: dict[str, _Route] = {}
        self.is_draining = False

    def drain(self) -> None:
        self.is_draining = True
        for session in self.sessions:
            session.send(Drain(self.settings.epoch))


class _Session:
    """One router's connection; a LinkPeer."""

    def __init__(self, number: int, shared: _Shared) -> None:
        self._number = number
        self._shared = shared
        self._nonce = new_nonce()
        self._link: Link | None = None
        self._router_id = ""
        self._last_stream = -1
        self._requests: dict[int, str] = {}
        self._answering: set[asyncio.Task[None]] = set()

    def on_open(self, link: Link) -> None:
        self._link = link
        link.send(Challenge(VERSION, self._nonce))
        asyncio.get_running_loop().call_later(
            self._shared.settings.greeting_timeout_s, self._expect_greeted
        )

    def on_frame(self, frame: Frame) -> None:
        if not self._router_id:
            self._greet(frame)
            return
        match frame:
            case Submit():
                self._submit(frame)
            case Cancel(stream):
                self._cancel(stream)
            case Explain() | SetPolicy() | SetResidence():
                self._take_question(frame)
            case Drain():
                self._shared.drain()
            case Ping():
                pass
            case Goodbye(reason):
                self.close(reason)
            case _:
                raise ProtocolError(f"a router doesn't send {type(frame).__name__}")

    def on_close(self, reason: str) -> None:
        self._shared.sessions.discard(self)
        logger.info("router %s is gone: %s", self._router_id or "(unknown)", reason)
        for stream in tuple(self._requests):
            self._cancel(stream)
        for task in self._answering:
            task.cancel()

    def send(self, frame: Frame) -> None:
        if self._link is not None:
            self._link.send(frame)

    @property
    def unsent_bytes(self) -> int:
        return self._link.unsent_bytes if self._link is not None else 0

    def close(self, reason: str) -> None:
        if self._link is not None:
            self._link.close(reason)

    def forget(self, stream: int) -> None:
        """The stream has ended; drop its route."""
        del self._shared.routes[self._requests.pop(stream)]

    def _greet(self, frame: Frame) -> None:
        settings, link = self._shared.settings, self._link
        if link is None or not isinstance(frame, Hello) or frame.version != VERSION:
            raise ProtocolError(f"a Hello of version {VERSION} is expected")
        nonces = (self._nonce, frame.nonce)
        if not is_proof(frame.proof, settings.secret, Role.ROUTER, nonces):
            raise ProtocolError("the router's proof of the link secret is wrong")
        self._router_id = frame.router_id or "(unnamed)"
        self._shared.sessions.add(self)
        link.trust()
        proof = prove(settings.secret, Role.GROUP, *nonces)
        models = self._shared.engine.served()
        self.send(Welcome(VERSION, proof, settings.group, settings.epoch, models))
        self.send(Report(settings.epoch, self._shared.engine.report()))
        if self._shared.is_draining:
            self.send(Drain(settings.epoch))

    def _expect_greeted(self) -> None:
        if not self._router_id and self._link is not None:
            self._link.abort("no Hello in time")

    def _submit(self, frame: Submit) -> None:
        if frame.stream <= self._last_stream:
            raise ProtocolError(f"Submit.stream {frame.stream} was used before")
        self._last_stream = frame.stream
        if self._shared.is_draining:
            self._refuse(frame.stream, Unavailable("the device group drains", 1.0))
            return
        request_id = engine_id(self._number, frame.stream, frame.request.request_id)
        self._requests[frame.stream] = request_id
        self._shared.routes[request_id] = _Route(self, frame.stream)
        try:
            self._shared.engine.submit(replace(frame.request, request_id=request_id))
        except RequestError as error:
            self.forget(frame.stream)
            self._refuse(frame.stream, error)
        except Exception:
            logger.exception("request %s: the engine failed to take it", request_id)
            self.forget(frame.stream)
            self._refuse(frame.stream, InternalError("the engine failed to take the request"))

    def _refuse(self, stream: int, error: RequestError) -> None:
        output = StreamOutput(stream, (), None, None, failure_of(error))
        self.send(Step(self._shared.settings.epoch, (output,)))

    def _take_question(self, question: Question) -> None:
        if len(self._answering) >= MAX_QUESTIONS:
            raise ProtocolError(f"more than {MAX_QUESTIONS} questions at once")
        task = asyncio.create_task(self._answer(question))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _answer(self, question: Question) -> None:
        shared = self._shared
        self.send(await answer_to(question, shared.engine, shared.settings.epoch))

    def _cancel(self, stream: int) -> None:
        # A stream that just ended crosses its Cancel on the way.
        if stream in self._requests:
            request_id = self._requests[stream]
            self.forget(stream)
            self._shared.engine.cancel(request_id)


class LinkServer:
    """Listens for routers, and sends each the events of its own requests.

    All methods but ``publish`` belong to the event loop that called ``start``.
    """

    def __init__(
        self, engine: GroupEngine, settings: LinkSettings, tls: ssl.SSLContext | None = None
    ) -> None:
        self._settings = settings
        self._shared = _Shared(engine, settings)
        self._tls = tls
        self._codec = FrameCodec()
        self._numbers = itertools.count(1)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: asyncio.Server | None = None
        self._reporting: asyncio.Task[None] | None = None

    async def start(self) -> tuple[str, int]:
        """Listen; return the address that routers connect to.

        Raises:
            OSError: The address can't be bound.
        """
        settings = self._settings
        self._loop = asyncio.get_running_loop()
        self._server = await self._loop.create_server(
            self._new_link, settings.host, settings.port, ssl=self._tls
        )
        self._reporting = asyncio.create_task(self._report_forever())
        port: int = self._server.sockets[0].getsockname()[1]
        return settings.host, port

    async def stop(self) -> None:
        """Say goodbye, close all connections, and cancel the requests that they carried."""
        if self._server is None or self._reporting is None:
            return
        self._loop = None
        self._reporting.cancel()
        self._server.close()
        for session in tuple(self._shared.sessions):
            session.send(Goodbye("the device group stops"))
            session.close("the device group stops")
        await asyncio.wait([self._reporting])

    @property
    def num_streams(self) -> int:
        """Requests in flight over all connections."""
        return len(self._shared.routes)

    @property
    def unsent_bytes(self) -> int:
        """What waits for routers to read, over all connections."""
        return sum(session.unsent_bytes for session in self._shared.sessions)

    def publish(self, outputs: list[RequestOutput]) -> None:
        """Send what an engine step did, one frame for each router; from any thread."""
        loop = self._loop
        if loop is not None and outputs:
            loop.call_soon_threadsafe(self._send_step, outputs)

    def drain(self) -> None:
        """Refuse new requests, and tell every router so; those in flight go on."""
        self._shared.drain()

    def _new_link(self) -> Link:
        return Link(_Session(next(self._numbers), self._shared), self._codec)

    def _send_step(self, outputs: Iterable[RequestOutput]) -> None:
        by_session: dict[_Session, list[StreamOutput]] = {}
        for output in outputs:
            route = self._shared.routes.get(output.request_id)
            if route is None:
                # Cancelled while the engine was at it.
                continue
            failure = failure_of(output.error) if output.error else None
            by_session.setdefault(route.session, []).append(
                StreamOutput(route.stream, output.deltas, output.usage, output.timing, failure)
            )
            if output.is_last:
                route.session.forget(route.stream)
        for session, stream_outputs in by_session.items():
            session.send(Step(self._settings.epoch, tuple(stream_outputs)))

    async def _report_forever(self) -> None:
        while True:
            report = Report(self._settings.epoch, self._shared.engine.report())
            for session in tuple(self._shared.sessions):
                session.send(report)
            await asyncio.sleep(self._settings.report_interval_s)
