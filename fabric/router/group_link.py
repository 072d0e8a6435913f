"""One device group as the router sees it: a connection that comes back, and its streams."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from fabric.core.errors import InvalidRequest, ProtocolError, Unavailable
from fabric.core.request import GenerationRequest, LoadReport, ServedModel
from fabric.router.connection import Connection, GroupAddress, LinkOptions
from fabric.router.mailbox import Mailbox
from fabric.rpc.frames import Answer, FrameCodec, Question
from fabric.rpc.link import Link

logger = logging.getLogger(__name__)


class GroupLink:
    """Keeps a connection to one incarnation of a group, and carries requests over it.

    When the connection drops, the streams on it end with Unavailable at once, and it is dialled
    again, more and more slowly.
    """

    def __init__(
        self,
        address: GroupAddress,
        options: LinkOptions,
        codec: FrameCodec,
        on_change: Callable[[], None],
    ) -> None:
        self.address = address
        self._options = options
        self._codec = codec
        self._on_change = on_change
        self._connection: Connection | None = None
        self._is_draining = False
        self._num_streams = 0
        # The leave that is under way, told from an earlier one that was called off.
        self._leave: object | None = None
        self._changed = asyncio.Event()
        self._task = asyncio.create_task(self._stay_connected())

    async def stop(self) -> None:
        """Close the connection; streams on it end with Unavailable."""
        self._end_leave()
        self._task.cancel()
        await asyncio.wait([self._task])

    async def leave(self, timeout_s: float) -> None:
        """Stop when the streams have ended, or after ``timeout_s``; a lost connection stays lost.

        Whoever holds the link opens nothing on it meanwhile.
        """
        leave = self._leave = object()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._num_streams and self._leave is leave:
                    self._changed.clear()
                    await self._changed.wait()
        if self._leave is leave:
            await self.stop()

    def stay(self) -> bool:
        """Call the leave off; whether it was not too late."""
        if self._leave is None or self._task.done():
            return False
        self._end_leave()
        return True

    def _end_leave(self) -> None:
        self._leave = None
        self._changed.set()

    @property
    def num_streams(self) -> int:
        """Streams that are open."""
        return self._num_streams

    @property
    def is_connected(self) -> bool:
        """Whether the group has been greeted and the connection stands."""
        return self._connection is not None and self._connection.is_ready

    @property
    def is_draining(self) -> bool:
        """Whether the group takes nothing new."""
        connection = self._connection
        return self._is_draining or (connection is not None and connection.is_draining)

    @property
    def models(self) -> tuple[ServedModel, ...]:
        """What the group serves; nothing while it is not connected."""
        return self._connection.models if self._connection is not None else ()

    @property
    def epoch(self) -> int:
        """The incarnation that is connected, or else the one that is looked for."""
        return self._connection.epoch if self._connection is not None else self.address.epoch

    @property
    def load(self) -> LoadReport:
        """The group's last report; zeros while it is not connected."""
        return self._connection.load if self._connection is not None else LoadReport()

    def silent_s(self) -> float:
        """Seconds since the group was last heard of; 0 while it is not connected."""
        return self._connection.silent_s() if self._connection is not None else 0.0

    def drain(self) -> None:
        """Ask the group to take nothing new, from any router."""
        self._is_draining = True
        if self._connection is not None:
            self._connection.drain()

    async def ask(self, make: Callable[[int], Question]) -> Answer:
        """Ask the group what ``make`` makes of a question's number.

        Raises:
            RequestError: The group refuses, is not connected, or does not answer in time.
        """
        return await self._ready_connection().ask(make)

    @contextmanager
    def open(self, request: GenerationRequest) -> Iterator[Mailbox]:
        """Submit a request; leaving the context before the end cancels it.

        Raises:
            Unavailable: The group is not connected.
            InvalidRequest: The request doesn't fit in a frame.
        """
        connection = self._ready_connection()
        try:
            stream, mailbox = connection.submit(request)
        except ProtocolError as error:
            raise InvalidRequest.of("prompt", f"is too large: {error.message}") from error
        self._num_streams += 1
        try:
            yield mailbox
        finally:
            self._num_streams -= 1
            self._changed.set()
            connection.leave(stream)

    def _ready_connection(self) -> Connection:
        connection = self._connection
        if connection is None or not connection.is_ready:
            raise Unavailable(f"device group {self.address.name} is not connected", 1.0)
        return connection

    async def _stay_connected(self) -> None:
        backoff_s = self._options.min_backoff_s
        now = asyncio.get_running_loop().time
        while True:
            dialled_s = now()
            connection = Connection(self.address, self._options, self._on_change)
            try:
                await self._dial(connection)
                self._connection = connection
                self._on_change()
                await connection.wait_closed(self._options.silence_s)
            except (OSError, TimeoutError, ProtocolError) as error:
                logger.debug("device group %s: %s", self.address.name, error)
            finally:
                connection.abort("the router gives the connection up")
                self._connection = None
                self._on_change()
            if self._leave is not None:
                return
            if now() - dialled_s > self._options.max_backoff_s:
                # It stood for a while: not a group that greets us and then fails each time.
                backoff_s = self._options.min_backoff_s
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, self._options.max_backoff_s)

    async def _dial(self, connection: Connection) -> None:
        async with asyncio.timeout(self._options.greeting_timeout_s):
            await asyncio.get_running_loop().create_connection(
                lambda: Link(connection, self._codec),
                self.address.host,
                self.address.port,
                ssl=self._options.tls,
            )
            await connection.wait_ready()
