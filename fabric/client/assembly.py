"""Puts a streamed answer together, and checks that nothing of it is missing or repeated."""

from fabric.core.errors import ProtocolError
from fabric.core.generation import Completed, Generation, Sequence, Started, StreamEvent
from fabric.core.request import PositionLogprobs, SequenceDelta


class _PartialSequence:
    def __init__(self, index: int) -> None:
        self._index = index
        self._token_ids: list[int] = []
        self._texts: list[str] = []
        self._logprobs: list[PositionLogprobs] = []
        self._last: SequenceDelta | None = None

    def add(self, delta: SequenceDelta) -> None:
        if self._last is not None:
            raise ProtocolError(f"sequence {self._index} goes on after its end")
        if delta.first_token != len(self._token_ids):
            raise ProtocolError(
                f"sequence {self._index} goes on at token {delta.first_token}, "
                f"but token {len(self._token_ids)} is next"
            )
        self._token_ids.extend(delta.token_ids)
        self._texts.append(delta.text)
        self._logprobs.extend(delta.logprobs)
        if delta.finish_reason is not None:
            self._last = delta

    def finished(self) -> Sequence:
        if self._last is None:
            raise ProtocolError(f"the answer completed before sequence {self._index} ended")
        return Sequence(
            index=self._index,
            text="".join(self._texts),
            token_ids=tuple(self._token_ids),
            finish_reason=self._last.finish_reason,
            logprobs=tuple(self._logprobs),
            stop_match=self._last.stop_match,
        )


class Assembly:
    """Collects the events of one stream into a ``Generation``."""

    def __init__(self) -> None:
        self._started: Started | None = None
        self._sequences: dict[int, _PartialSequence] = {}
        self._generation: Generation | None = None

    @property
    def has_tokens(self) -> bool:
        """Whether tokens were delivered, so that the stream must not start again."""
        return bool(self._sequences)

    @property
    def generation(self) -> Generation | None:
        """The answer; None until ``Completed`` was added."""
        return self._generation

    def add(self, event: StreamEvent) -> None:
        """Add the next event.

        Raises:
            ProtocolError: Tokens are missing, repeated or follow the end; names them.
        """
        match event:
            case SequenceDelta():
                partial = self._sequences.get(event.index)
                if partial is None:
                    partial = self._sequences[event.index] = _PartialSequence(event.index)
                partial.add(event)
            case Started():
                self._started = event
            case Completed():
                self._complete(event)

    def _complete(self, completed: Completed) -> None:
        if self._started is None:
            raise ProtocolError("the answer completed before it started")
        self._generation = Generation(
            request_id=self._started.request_id,
            model=self._started.model,
            sequences=tuple(part.finished() for _, part in sorted(self._sequences.items())),
            usage=completed.usage,
            timing=completed.timing,
            seed=self._started.seed,
        )
