"""A benchmark's result, as JSON with vLLM's key names and as tables."""

import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, cast

from fabric.cli.bench_metrics import (
    METRICS,
    RequestRecord,
    goodput,
    latency_summary,
    throughput,
)
from fabric.cli.bench_models import ModelShare
from fabric.cli.table import format_table

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
    ("Refused among these:", "refused"),
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
    ("Cold starts:", "cold_starts"),
    ("Mean cold start (ms):", "mean_cold_start_ms"),
)


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """What was measured; ``request_rate`` is in requests a second, ``burstiness`` is 1 / CV².

    ``slos_ms`` has each model's bounds by metric, ``unloaded_e2el_ms`` what its typical request
    took alone, where that was measured. With ``keeps_texts``, the result has the answers.
    """

    shares: tuple[ModelShare, ...]
    request_rate: float
    burstiness: float
    max_concurrency: int | None
    percents: tuple[float, ...]
    slos_ms: Mapping[str, Mapping[str, float]]
    unloaded_e2el_ms: Mapping[str, float] = field(default_factory=dict)
    keeps_texts: bool = False


def build_result(
    settings: BenchSettings,
    records: Sequence[RequestRecord],
    duration_s: float,
    now: datetime,
) -> dict[str, object]:
    """The result as one JSON object; times in its lists are seconds, as in vLLM's.

    What it says of all requests it says of each model's too, in ``models``.
    """
    names = ",".join(each.model for each in settings.shares)
    return {
        "date": now.strftime("%Y%m%d-%H%M%S"),
        "backend": "fabric-grpc",
        "model_id": names,
        "tokenizer_id": names,
        "burstiness": _json_number(settings.burstiness),
        "max_concurrency": settings.max_concurrency,
        **_measured(settings, records, duration_s, 1.0),
        "models": {
            each.model: _of_model(settings, each, records, duration_s) for each in settings.shares
        },
    }


def _of_model(
    settings: BenchSettings, each: ModelShare, records: Sequence[RequestRecord], duration_s: float
) -> dict[str, object]:
    own = [record for record in records if record.model == each.model]
    return {
        "slos_ms": dict(settings.slos_ms.get(each.model, {})),
        "unloaded_e2el_ms": settings.unloaded_e2el_ms.get(each.model),
        **_measured(settings, own, duration_s, each.share),
    }


def _measured(
    settings: BenchSettings, records: Sequence[RequestRecord], duration_s: float, share: float
) -> dict[str, object]:
    texts = {"generated_texts": [record.text for record in records]}
    return {
        "num_prompts": len(records),
        "request_rate": _json_number(settings.request_rate * share),
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


def tables(
    result: Mapping[str, object], percents: Sequence[float], width: int | None = None
) -> Iterator[str]:
    """The result as lines of text; of several models, a row for each one follows.

    Args:
        result: What ``build_result`` returned.
        percents: Percentiles to show.
        width: Characters of a line, to which the tables of models are cut.
    """
    yield from _all_requests(result, percents)
    models = cast(Mapping[str, Mapping[str, Any]], result["models"])
    if len(models) > 1:
        rows = {**models, "total": result}
        for header, *lines in (_service_table(rows), _latency_table(rows, percents)):
            yield ""
            yield format_table(header, lines, width=width)


def _all_requests(result: Mapping[str, object], percents: Sequence[float]) -> Iterator[str]:
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


def _service_table(rows: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """How each model's requests ended; the three columns after the requests add up to them."""
    header = ["MODEL", "REQ/S", "REQUESTS", "DONE", "REFUSED", "ERRORS"]
    lines = [[*header, "COLD", "COLD MS", "MET %", "OBJECTIVES MS"]]
    for name, row in rows.items():
        rate, met, refused = row["request_rate"], row["slo_attainment"], row["refused"]
        lines.append(
            [
                name,
                "-" if isinstance(rate, str) else f"{rate:.2f}",
                *(str(row["num_prompts"]), str(row["completed"])),
                *(str(refused), str(row["failed"] - refused), str(row["cold_starts"])),
                f"{row['mean_cold_start_ms']:.1f}" if row["cold_starts"] else "-",
                "-" if met is None else f"{met * 100:.1f}",
                " ".join(f"{metric}:{ms:.4g}" for metric, ms in row.get("slos_ms", {}).items()),
            ]
        )
    return lines


def _latency_table(
    rows: Mapping[str, Mapping[str, Any]], percents: Sequence[float]
) -> list[list[str]]:
    """Milliseconds of completed requests; the 50th percentile is the median."""
    shown = ("mean", "median", *(f"p{percent:g}" for percent in percents if percent != 50))
    titles = ("MEAN", "P50", *(kind.upper() for kind in shown[2:]))
    metrics = ("ttft", "tpot", "e2el")
    lines = [["MODEL", *(f"{m.upper()} {title}" for m in metrics for title in titles)]]
    for name, row in rows.items():
        cells = (f"{row[f'{kind}_{metric}_ms']:.1f}" for metric in metrics for kind in shown)
        lines.append([name, *(cells if row["completed"] else "-" * len(lines[0][1:]))])
    return lines


def _row(title: str, value: object) -> str:
    text = f"{value:.2f}" if isinstance(value, float) else str(value)
    return f"{title:<40}{text:>12}"


def _json_number(value: float) -> float | str:
    """JSON has no infinity; vLLM writes it as a string."""
    return "inf" if value == float("inf") else value
