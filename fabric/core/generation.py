"""What a client gets back: the events of a streamed answer, and the whole answer."""

from dataclasses import dataclass

from fabric.core.request import (
    FinishReason,
    PositionLogprobs,
    SequenceDelta,
    StopMatch,
    Timing,
    Usage,
)


@dataclass(frozen=True, slots=True)
class Started:
    """The request was admitted; the same request with this seed gives the same tokens."""

    request_id: str
    model: str
    prompt_tokens: int
    seed: int


@dataclass(frozen=True, slots=True)
class Completed:
    """All sequences have ended."""

    usage: Usage
    timing: Timing


StreamEvent = Started | SequenceDelta | Completed


@dataclass(frozen=True, slots=True)
class Sequence:
    """One whole generated sequence."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    logprobs: tuple[PositionLogprobs, ...] = ()
    stop_match: StopMatch | None = None


@dataclass(frozen=True, slots=True)
class Generation:
    """The whole answer; ``sequences`` are in the order of their indexes."""

    request_id: str
    model: str
    sequences: tuple[Sequence, ...]
    usage: Usage
    timing: Timing
    seed: int

    @property
    def text(self) -> str:
        """The first sequence's text."""
        return self.sequences[0].text
