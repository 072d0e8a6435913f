"""One connection to one incarnation of a device group; when it is gone, it stays gone."""

import asyncio
import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass

from fabric.core.errors import ProtocolError, Unavailable
from fabric.core.request import GenerationRequest, LoadReport, ServedModel
from fabric.router.mailbox import Mailbox
from fabric.router.questions import Questions
from fabric.rpc.frames import (
    VERSION,
    Answer,
    Cancel,
    Challenge,
    Drain,
    Explained,
    Frame,
    Goodbye,
    Hello,
    Ping,
    PolicySet,
    Question,
    Refused,
    Report,
    ResidenceSet,
    Step,
    StreamOutput,
    Submit,
    Welcome,
)
from fabric.rpc.link import Link
from fabric.rpc.secret import Role, is_proof, new_nonce, prove

logger = logging.getLogger(__name__)

PING_PERIOD_S = 0.25


@dataclass(frozen=True, slots=True)
class GroupAddress:
    """Where a group's link listens; ``epoch`` is the lowest that may answer there."""

    name: str
    host: str
    port: int
    epoch: int


@dataclass(frozen=True, slots=True)
class LinkOptions:
    """How a router keeps its links.

    A connection that is silent for ``silence_s`` is given up: a group reports several times a
    second, also when idle. A question is given up after ``answer_timeout_s``: its group answers
    between two iterations.
    """

    secret: str
    router_id: str
    tls: ssl.SSLContext | None = None
    greeting_timeout_s: float = 2.0
    silence_s: float = 10.0
    answer_timeout_s: float = 5.0
    min_backoff_s: float = 0.05
    max_backoff_s: float = 1.0


class Connection:
    """The router's end of a link; a LinkPeer.

    Frames of another epoch than the one that was greeted are dropped: they are a zombie's.
    """

    def __init__(
        self, address: GroupAddress, options: LinkOptions, on_change: Callable[[], None]
    ) -> None:
        self._address = address
        self._options = options
        self._on_change = on_change
        self._link: Link | None = None
        self._nonces = (b"", new_nonce())
        self._mailboxes: dict[int, Mailbox] = {}
        self._last_stream = -1
        self._questions = Questions(address.name, options.answer_timeout_s)
        self._greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._closed = asyncio.Event()
        self.models: tuple[ServedModel, ...] = ()
        self.epoch = address.epoch
        self.load = LoadReport()
        self.is_draining = False

    @property
    def is_ready(self) -> bool:
        """Whether the group was greeted and the connection stands."""
        return self._greeted.done() and not self._closed.is_set()

    async def wait_ready(self) -> None:
        """Wait for the group's Welcome.

        Raises:
            ProtocolError: The connection closed before.
        """
        await self._greeted

    async def wait_closed(self, silence_s: float) -> None:
        """Wait until the connection is gone, or nothing has been heard for ``silence_s``.

        Pings meanwhile: the kernel notices a lost host soonest by what it doesn't acknowledge.
        """
        assert self._link is not None
        while not self._closed.is_set() and self.silent_s() < silence_s:
            self._link.send(Ping())
            try:
                async with asyncio.timeout(min(PING_PERIOD_S, silence_s)):
                    await self._closed.wait()
            except TimeoutError:
                continue

    def silent_s(self) -> float:
        """Seconds since anything was received."""
        assert self._link is not None
        return asyncio.get_running_loop().time() - self._link.last_heard_s

    def submit(self, request: GenerationRequest) -> tuple[int, Mailbox]:
        """Send a request; return its stream's number and mailbox.

        Raises:
            ProtocolError: It doesn't fit in a frame.
        """
        assert self._link is not None
        self._last_stream += 1
        stream, mailbox = self._last_stream, Mailbox()
        self._link.send(Submit(stream, request))
        self._mailboxes[stream] = mailbox
        return stream, mailbox

    def leave(self, stream: int) -> None:
        """Forget a stream, and cancel it if it has not ended."""
        mailbox = self._mailboxes.pop(stream, None)
        if mailbox is not None and not mailbox.has_ended and self._link is not None:
            self._link.send(Cancel(stream))

    async def ask(self, make: Callable[[int], Question]) -> Answer:
        """Ask the group what ``make`` makes of a question's number.

        Raises:
            RequestError: The group refuses, is lost, or does not answer in time.
        """
        assert self._link is not None
        return await self._questions.ask(self._link.send, make)

    def drain(self) -> None:
        """Ask the group to take nothing new."""
        if self._link is not None:
            self._link.send(Drain(self.epoch))

    def abort(self, reason: str) -> None:
        """Close at once; streams end with Unavailable."""
        if self._link is not None:
            self._link.abort(reason)
        self._end(reason)

    def on_open(self, link: Link) -> None:
        """Called by the link."""
        self._link = link

    def on_close(self, reason: str) -> None:
        """Called by the link."""
        self._end(reason)

    def on_frame(self, frame: Frame) -> None:
        """Called by the link."""
        match frame:
            case Step(epoch, outputs) if self.is_ready:
                if epoch == self.epoch:
                    self._deliver(outputs)
            case Report(epoch, load) if self.is_ready:
                if epoch == self.epoch:
                    self.load = load
            case Explained() | PolicySet() | ResidenceSet() | Refused() as answer if self.is_ready:
                if answer.epoch == self.epoch:
                    self._questions.settle(answer)
            case Drain() if self.is_ready:
                self.is_draining = True
                self._on_change()
            case Goodbye(reason):
                self.abort(reason)
            case _:
                self._greet(frame)

    def _deliver(self, outputs: tuple[StreamOutput, ...]) -> None:
        for output in outputs:
            mailbox = self._mailboxes.get(output.stream)
            if mailbox is not None:
                mailbox.put(output)

    def _greet(self, frame: Frame) -> None:
        if isinstance(frame, Challenge) and not self._greeted.done():
            self._answer(frame)
        elif isinstance(frame, Welcome) and not self._greeted.done():
            self._check(frame)
            self.epoch = frame.epoch
            self.models = frame.models
            self._greeted.set_result(None)
        else:
            raise ProtocolError(f"{type(frame).__name__} is not expected now")

    def _answer(self, frame: Challenge) -> None:
        if frame.version != VERSION:
            raise ProtocolError(f"the group speaks version {frame.version}, we {VERSION}")
        assert self._link is not None
        self._nonces = (frame.nonce, self._nonces[1])
        proof = prove(self._options.secret, Role.ROUTER, *self._nonces)
        self._link.send(Hello(VERSION, self._options.router_id, self._nonces[1], proof))
        # What follows may be long; a group that lacks the secret gains memory of ours, no more.
        self._link.trust()

    def _check(self, frame: Welcome) -> None:
        if not is_proof(frame.proof, self._options.secret, Role.GROUP, self._nonces):
            raise ProtocolError("the group's proof of the link secret is wrong")
        if frame.group != self._address.name or frame.epoch < self._address.epoch:
            raise ProtocolError(
                f"{frame.group} of epoch {frame.epoch} answers for {self._address.name} of epoch "
                f"{self._address.epoch}"
            )

    def _end(self, reason: str) -> None:
        if self._closed.is_set():
            return
        self._closed.set()
        if not self._greeted.done():
            self._greeted.set_exception(ProtocolError(reason))
            # Nobody may be waiting any more.
            self._greeted.exception()
        elif self._mailboxes:
            logger.warning(
                "device group %s: connection lost with %d requests in flight: %s",
                self._address.name,
                len(self._mailboxes),
                reason,
            )
        error = Unavailable(f"device group {self._address.name} was lost: {reason}", 1.0)
        for mailbox in self._mailboxes.values():
            mailbox.fail(error)
        self._questions.fail(error)
