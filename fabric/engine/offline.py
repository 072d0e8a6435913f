"""Runs a set of requests through an engine to the end: notebooks, tests and benchmarks."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from fabric.core.errors import RequestError
from fabric.core.request import (
    FinishReason,
    GenerationRequest,
    PositionLogprobs,
    RequestOutput,
    SequenceDelta,
    Timing,
    Usage,
)
from fabric.engine.engine import Engine


@dataclass(slots=True)
class GeneratedSequence:
    """One sequence, put together from its deltas."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[PositionLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def append(self, delta: SequenceDelta) -> None:
        """Add a delta; it must follow the last one."""
        assert delta.first_token == len(self.token_ids)
        self.token_ids.extend(delta.token_ids)
        self.text += delta.text
        self.logprobs.extend(delta.logprobs)
        self.finish_reason = delta.finish_reason


@dataclass(slots=True)
class Generated:
    """What one request generated, by sequence index, and how it ended."""

    sequences: dict[int, GeneratedSequence] = field(default_factory=dict)
    usage: Usage | None = None
    timing: Timing | None = None
    error: RequestError | None = None

    def append(self, output: RequestOutput) -> None:
        """Add what one step did."""
        for delta in output.deltas:
            self.sequences.setdefault(delta.index, GeneratedSequence()).append(delta)
        self.usage, self.timing, self.error = output.usage, output.timing, output.error


def generate(engine: Engine, requests: Iterable[GenerationRequest]) -> dict[str, Generated]:
    """Run requests to their ends together.

    Returns:
        What each generated, by request id.

    Raises:
        InvalidRequest: A request could never be served.
        Overloaded: There are more requests than the engine's queue holds.
    """
    results: dict[str, Generated] = {}
    for request in requests:
        engine.add(request)
        results[request.request_id] = Generated()
    while engine.has_work:
        for output in engine.step():
            results[output.request_id].append(output)
    return results
