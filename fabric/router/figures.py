"""How the requests that pass through a router are served, counted for its metrics."""

from collections import Counter
from collections.abc import Callable

from fabric.core.generation import Completed
from fabric.core.request import FinishReason, Objectives, Timing
from fabric.router.objectives import judged, stated
from fabric.telemetry.histogram import Histogram

# vLLM's buckets, with finer ones below: small models answer in milliseconds.
TTFT_S = (
    *(0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0),
    *(7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
GAP_S = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0),
    *(2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
LATENCY_S = (
    *(0.01, 0.03, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0),
    *(50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)

# Name, help, buckets, and the value of a request that has completed.
OF_REQUESTS: tuple[tuple[str, str, tuple[float, ...], Callable[[Completed], float]], ...] = (
    ("vllm:time_to_first_token_seconds", "Arrival to first token", TTFT_S,
     lambda end: end.timing.ttft_s),
    ("vllm:e2e_request_latency_seconds", "Arrival to last token", LATENCY_S,
     lambda end: end.timing.e2e_s),
    ("vllm:request_queue_time_seconds", "Arrival to first scheduling", LATENCY_S,
     lambda end: end.timing.queue_s),
    ("vllm:request_prefill_time_seconds", "First scheduling to first token", LATENCY_S,
     lambda end: end.timing.prefill_s),
    ("vllm:request_decode_time_seconds", "First to last token", LATENCY_S,
     lambda end: end.timing.decode_s),
    ("fabric_request_swapped_seconds", "Time with KV off the device or on its way", LATENCY_S,
     lambda end: end.timing.swapped_s),
    ("vllm:request_prompt_tokens", "Prompt tokens of a request", TOKENS,
     lambda end: end.usage.prompt_tokens),
    ("vllm:request_generation_tokens", "Output tokens of a request", TOKENS,
     lambda end: end.usage.completion_tokens),
)  # fmt: skip


class ServiceFigures:
    """What the requests of one model on one device group were served like; for one thread."""

    def __init__(self) -> None:
        self.gaps = Histogram(GAP_S)
        self.of_requests = {name: Histogram(bounds) for name, _, bounds, _ in OF_REQUESTS}
        self.finished: Counter[str] = Counter()
        self.num_prompt_tokens = 0
        self.num_output_tokens = 0

    def note_tokens(self, count: int, gap_s: float | None) -> None:
        """Count output tokens that came together, ``gap_s`` after the ones before."""
        self.num_output_tokens += count
        if gap_s is not None:
            self.gaps.note(gap_s)

    def note_end(self, end: Completed, reason: FinishReason | None) -> None:
        """Count a request that has completed."""
        self.finished[str(reason or FinishReason.STOP)] += 1
        for name, _, _, value in OF_REQUESTS:
            self.of_requests[name].note(value(end))


class SloFigures:
    """How requests fared with their objectives, by model; whoever had none isn't counted.

    ``outcomes`` are counted by model, objective, and met, missed or refused. A request that is
    ``good`` met all that it had.

    Source: DistServe (Zhong et al., OSDI 2024) for goodput.
    """

    def __init__(self) -> None:
        self.outcomes: Counter[tuple[str, str, str]] = Counter()
        self.good: Counter[str] = Counter()

    def note_completed(
        self, model: str, objectives: Objectives, timing: Timing, num_output_tokens: float
    ) -> None:
        """Judge a request that has completed, with so many tokens in each sequence."""
        found = tuple(judged(objectives, timing, num_output_tokens))
        for name, is_met in found:
            self.outcomes[model, name, "met" if is_met else "missed"] += 1
        if found and all(is_met for _, is_met in found):
            self.good[model] += 1

    def note_failed(self, model: str, objectives: Objectives) -> None:
        """Count a request that was let in and ended without an answer, not by its client."""
        for name in stated(objectives):
            self.outcomes[model, name, "missed"] += 1

    def note_refused(self, model: str, objective: str) -> None:
        """Count a request that was refused for one of its objectives."""
        self.outcomes[model, objective, "refused"] += 1
