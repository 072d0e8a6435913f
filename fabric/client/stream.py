"""A streamed answer."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from fabric.client.assembly import Assembly
from fabric.client.retry import Attempts
from fabric.core.errors import ProtocolError, RequestCancelled
from fabric.core.generation import Generation, StreamEvent
from fabric.core.request import SequenceDelta
from fabric.rpc.convert_output import event_from_proto
from fabric.rpc.status import from_rpc_error

# A grpc.aio unary-stream call; grpc's own types don't know the generated messages.
StreamCall = Any


class AsyncGenerationStream:
    """The events of one answer: Started, deltas, Completed. The RPC begins with the first read.

    Leaving ``async with``, or ``aclose()``, cancels an unfinished RPC; the server then frees the
    request. If ``Unavailable`` strikes before the first token, the stream starts again by itself,
    with another ``Started``.
    """

    def __init__(self, open_call: Callable[[float | None], StreamCall], attempts: Attempts) -> None:
        self._open_call = open_call
        self._attempts = attempts
        self._call: StreamCall | None = None
        self._assembly = Assembly()
        self._is_closed = False

    @property
    def result(self) -> Generation:
        """The whole answer, once ``Completed`` was read.

        Raises:
            ProtocolError: It was not read yet.
        """
        if self._assembly.generation is None:
            raise ProtocolError("the answer is not complete")
        return self._assembly.generation

    def __aiter__(self) -> AsyncIterator[StreamEvent]:
        return self

    async def __anext__(self) -> StreamEvent:
        """The next event.

        Raises:
            RequestError: The request failed; the subclass tells how.
            ProtocolError: Tokens are missing or repeated, or the stream ended too early.
        """
        if self._assembly.generation is not None:
            await self._finish()
            raise StopAsyncIteration
        try:
            event = await self._read()
            self._assembly.add(event)
        except BaseException:
            await self.aclose()
            raise
        return event

    async def text(self, index: int = 0) -> AsyncIterator[str]:
        """Iterate over the pieces of one sequence's text as they become certain."""
        async for event in self:
            if isinstance(event, SequenceDelta) and event.index == index and event.text:
                yield event.text

    async def collect(self) -> Generation:
        """Read to the end and return the whole answer."""
        async for _ in self:
            pass
        return self.result

    async def aclose(self) -> None:
        """Cancel the RPC if it has not ended."""
        self._is_closed = True
        if self._call is not None:
            self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _read(self) -> StreamEvent:
        """The next event of a kind that we know; opens a new call where that is allowed."""
        while True:
            if self._is_closed:
                raise RequestCancelled("the stream was closed")
            try:
                message = await self._read_message()
            except grpc.RpcError as error:
                await self._retry_or_raise(error)
                continue
            if message is grpc.aio.EOF:
                raise ProtocolError("the stream ended before the answer was complete")
            event = event_from_proto(message)
            if event is not None:
                return event

    async def _read_message(self) -> Any:
        if self._call is None:
            self._call = self._open_call(self._attempts.remaining_s())
        with own_cancellation_only():
            return await self._call.read()

    async def _retry_or_raise(self, rpc_error: grpc.RpcError) -> None:
        error = from_rpc_error(rpc_error)
        if self._assembly.has_tokens:
            raise error from rpc_error
        await self._attempts.wait(error)
        self._call = None

    async def _finish(self) -> None:
        """Wait for the call's status: a cancel between the last event and it looks like a fault."""
        if self._call is not None and not self._is_closed:
            with contextlib.suppress(grpc.RpcError):
                await self._call.read()
        self._is_closed = True


@contextlib.contextmanager
def own_cancellation_only() -> Iterator[None]:
    """Let CancelledError through only if this task itself is cancelled, not its call.

    Raises:
        RequestCancelled: The call was cancelled on this side, by closing stream or client.
    """
    try:
        yield
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise RequestCancelled("the call was cancelled on this side") from None
