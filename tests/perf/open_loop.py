"""Sends requests to an engine when they arrive, whatever it has to do, and times them."""

import statistics
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from fabric.core.clock import Clock, VirtualClock
from fabric.core.request import GenerationRequest
from fabric.engine.engine import Engine


@dataclass(frozen=True)
class Served:
    """One request's times, in seconds after the start of the run."""

    request_id: str
    arrived_s: float
    first_token_s: float
    ended_s: float
    num_output_tokens: int

    @property
    def s_per_token(self) -> float:
        """Normalized latency: seconds from arrival to end, by output tokens."""
        return (self.ended_s - self.arrived_s) / self.num_output_tokens


def serve(
    engine: Engine,
    requests: Sequence[GenerationRequest],
    arrivals_s: Sequence[float],
    clock: Clock,
) -> list[Served]:
    """Run requests that arrive at the given times to their ends, in the order of the ends."""
    start_s, served = clock.now(), list[Served]()
    arrived: dict[str, float] = {}
    first_tokens: dict[str, float] = {}
    due = deque(zip(arrivals_s, requests, strict=True))
    while due or engine.has_work:
        now_s = clock.now() - start_s
        while due and due[0][0] <= now_s:
            arrival_s, request = due.popleft()
            arrived[request.request_id] = arrival_s
            engine.add(request)
        if not engine.has_work:
            _wait(clock, due[0][0] - now_s)
            continue
        for output in engine.step():
            name, now_s = output.request_id, clock.now() - start_s
            first_tokens.setdefault(name, now_s)
            if output.is_last:
                assert output.error is None
                assert output.usage is not None
                num_tokens = output.usage.completion_tokens
                times_s = arrived.pop(name), first_tokens.pop(name), now_s
                served.append(Served(name, *times_s, num_tokens))
    return served


def mean_s_per_token(served: list[Served]) -> float:
    """Mean normalized latency, as in Orca and vLLM."""
    return statistics.fmean(request.s_per_token for request in served)


def _wait(clock: Clock, seconds: float) -> None:
    if isinstance(clock, VirtualClock):
        # Not less than what rounding may take away, or it would wait forever.
        clock.advance(max(seconds, 1e-3))
    else:
        time.sleep(seconds)
