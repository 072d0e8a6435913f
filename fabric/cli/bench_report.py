"""A benchmark's result, as JSON with vLLM's key names and as a table."""

import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from fabric.cli.bench_metrics import (
    METRICS,
    RequestRecord,
    goodput,
    latency_summary,
    throughput,
)

WIDTH = 52
_TITLES = {
    "ttft": "Time to First Token",
    "tpot": "Time per Output Token (excl. 1st token)",
    "itl": "Inter-token Latency",
    "e2el": "End-to-end Latency",
}
_COUNTS = (
    ("Successful requests:", "completed"),
    ("Failed requests:", "failed"),
    ("Benchmark duration (s):", "duration"),
    ("Total input tokens:", "total_input_tokens"),
    ("Total generated tokens:", "total_output_tokens"),
    ("Request throughput (req/s):", "request_throughput"),
    ("Request goodput (req/s):", "request_goodput"),
    ("SLO attainment:", "slo_attainment"),
    ("Output token throughput (tok/s):", "output_throughput"),
    ("Total token throughput (tok/s):", "total_token_throughput"),
    ("Peak output throughput (tok/s):", "max_output_tokens_per_s"),
    ("Preemptions:", "preemptions"),
    ("KV bytes swapped:", "kv_bytes_swapped"),
)


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """What was measured; ``request_rate`` is in requests a second, ``burstiness`` is 1 / CV².

    With ``keeps_texts``, the result has the answers.
    """

    model: str
    request_rate: float
    burstiness: float
    max_concurrency: int | None
    percents: tuple[float, ...]
    slos_ms: Mapping[str, float]
    keeps_texts: bool = False


def build_result(
    settings: BenchSettings,
    records: Sequence[RequestRecord],
    duration_s: float,
    now: datetime,
) -> dict[str, object]:
    """The result as one JSON object; times in its lists are seconds, as in vLLM's."""
    texts = {"generated_texts": [record.text for record in records]}
    return {
        "date": now.strftime("%Y%m%d-%H%M%S"),
        "backend": "fabric-grpc",
        "model_id": settings.model,
        "tokenizer_id": settings.model,
        "num_prompts": len(records),
        "request_rate": _json_number(settings.request_rate),
        "burstiness": _json_number(settings.burstiness),
        "max_concurrency": settings.max_concurrency,
        **throughput(records, duration_s),
        **goodput(records, settings.slos_ms, duration_s),
        **latency_summary(records, settings.percents),
        "input_lens": [record.input_len for record in records],
        "output_lens": [record.output_len for record in records],
        "ttfts": [record.ttft_s for record in records],
        "itls": [list(record.itls_s) for record in records],
        "latencies": [record.e2e_s for record in records],
        "start_times": [record.arrival_s for record in records],
        **(texts if settings.keeps_texts else {}),
        "errors": [record.error for record in records],
    }


def measured_rate(arrivals_s: Sequence[float]) -> tuple[float, float]:
    """Mean rate in requests a second, and burstiness 1 / CV², of arrival times as they are."""
    gaps = [b - a for a, b in itertools.pairwise(arrivals_s)]
    mean_s = statistics.fmean(gaps) if gaps else 0.0
    if mean_s == 0:
        return float("inf"), 1.0
    variance = statistics.pvariance(gaps)
    return 1.0 / mean_s, mean_s**2 / variance if variance else float("inf")


def table(result: Mapping[str, object], percents: Sequence[float]) -> Iterator[str]:
    """The result as lines of text."""
    yield " Serving Benchmark Result ".center(WIDTH, "=")
    for title, key in _COUNTS:
        if result[key] is not None:
            yield _row(title, result[key])
    columns = ("mean", "median", "std", *(f"p{percent:g}" for percent in percents))
    for name in METRICS:
        yield f" {_TITLES[name]} ".center(WIDTH, "-")
        for column in columns:
            title = f"{column.capitalize()} {name.upper()} (ms):"
            yield _row(title, result[f"{column}_{name}_ms"])
    yield "=" * WIDTH


def _row(title: str, value: object) -> str:
    text = f"{value:.2f}" if isinstance(value, float) else str(value)
    return f"{title:<40}{text:>12}"


def _json_number(value: float) -> float | str:
    """JSON has no infinity; vLLM writes it as a string."""
    return "inf" if value == float("inf") else value
