"""Where the link puts a stream's tokens until its writer comes round."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from fabric.core.errors import InternalError, RequestError
from fabric.core.generation import Completed
from fabric.core.request import SequenceDelta, Timing
from fabric.rpc.failures import error_of
from fabric.rpc.frames import StreamOutput


@dataclass(frozen=True, slots=True)
class Letters:
    """What was ready: deltas, and how the stream ended if it has."""

    deltas: tuple[SequenceDelta, ...]
    end: Completed | RequestError | None


class Mailbox:
    """Tokens of one stream that arrived and have not been written; one reader.

    Putting never waits, so a slow client can't hold up the link; what piles up is bounded by the
    request's max_tokens.
    """

    def __init__(self) -> None:
        self._deltas: list[SequenceDelta] = []
        self._end: Completed | RequestError | None = None
        self._num_tokens: dict[int, int] = {}
        self._reader: asyncio.Future[None] | None = None

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come."""
        return self._end is not None

    def put(self, output: StreamOutput) -> None:
        """Add what one step did."""
        if self._end is not None:
            return
        for delta in output.deltas:
            self._put_delta(delta)
        if output.failure is not None:
            self._end = error_of(output.failure)
        elif output.usage is not None:
            self._end = Completed(output.usage, output.timing or Timing())
        self._wake()

    def fail(self, error: RequestError) -> None:
        """End the stream with an error, unless it has ended."""
        if self._end is None:
            self._end = error
            self._wake()

    async def take(self) -> Letters:
        """Wait until something is ready, and take all of it; tokens ready together are merged."""
        if not self._deltas and self._end is None:
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        deltas, self._deltas = self._deltas, []
        return Letters(tuple(merged(deltas)) if len(deltas) > 1 else tuple(deltas), self._end)

    def _put_delta(self, delta: SequenceDelta) -> None:
        expected = self._num_tokens.get(delta.index, 0)
        if delta.first_token != expected:
            lost = f"sequence {delta.index} goes on at token {delta.first_token}, not {expected}"
            self._end = InternalError(lost)
            return
        self._num_tokens[delta.index] = expected + len(delta.token_ids)
        self._deltas.append(delta)

    def _wake(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None and not reader.done():
            reader.set_result(None)


def merged(deltas: Iterable[SequenceDelta]) -> Iterable[SequenceDelta]:
    """Join the deltas of each sequence; sequences keep the order of their first delta."""
    by_index: dict[int, list[SequenceDelta]] = {}
    for delta in deltas:
        by_index.setdefault(delta.index, []).append(delta)
    return (_joined(parts) if len(parts) > 1 else parts[0] for parts in by_index.values())


def _joined(parts: list[SequenceDelta]) -> SequenceDelta:
    first, last = parts[0], parts[-1]
    return SequenceDelta(
        first.index,
        first.first_token,
        tuple([token for part in parts for token in part.token_ids]),
        "".join([part.text for part in parts]),
        tuple([position for part in parts for position in part.logprobs]),
        last.finish_reason,
        last.stop_match,
    )
