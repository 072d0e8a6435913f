"""Recorded requests as traces: Azure LLM, Mooncake, and what our own benchmark saw."""

import json
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fabric.core.errors import ConfigError
from fabric.core.traces import Arrival, read_trace
from placement.workload.files import load_trace
from placement.workload.lengths import to_tokens
from placement.workload.trace import Trace

_LISTS = ("start_times", "input_lens", "output_lens", "errors")


def read_requests(path: Path) -> Trace:
    """Read an Azure LLM trace (``.csv``) or a Mooncake one (``.jsonl``), all of one source, "".

    Raises:
        ConfigError: It can't be read, a line is wrong, or there is none.

    Source: Splitwise (Patel et al., ISCA 2024) and Mooncake (Qin et al., FAST 2025), the traces.
    """
    return to_trace(read_trace(path), path)


def read_journal(path: Path) -> Trace:
    """Read what our own fabric served: a saved trace (``.jsonl``), or a benchmark's result.

    The latter is the JSON of ``fabric bench serve --json``. Its failed requests were asked for
    too: those without an output count as long as the model's completed ones in the median.

    Raises:
        ConfigError: It is neither, or can't be read, or has no requests.
    """
    if path.suffix == ".jsonl":
        return load_trace(path)
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the benchmark's result {path}: {error}") from error
    return to_trace(_bench_requests(result, path), path)


def to_trace(requests: Iterable[Arrival], path: Path) -> Trace:
    """Requests in the order of their arrivals, whose models are the trace's sources.

    The trace begins with the first request, and is as long as if a mean gap followed the last.

    Raises:
        ConfigError: There are no requests.
    """
    found = sorted(requests, key=lambda one: one.at_s)
    if not found:
        raise ConfigError(f"{path} holds no requests")
    names = {name: place for place, name in enumerate(dict.fromkeys(one.model for one in found))}
    times_s = np.array([one.at_s for one in found]) - found[0].at_s
    last_s = float(times_s[-1])
    return Trace(
        tuple(names),
        last_s * len(found) / (len(found) - 1) if last_s > 0.0 else 1.0,
        times_s,
        np.array([names[one.model] for one in found], np.int32),
        to_tokens(np.array([one.input_len for one in found], np.float64)),
        to_tokens(np.array([one.output_len for one in found], np.float64)),
    )


def _bench_requests(result: Any, path: Path) -> Iterator[Arrival]:
    models = result.get("models") if isinstance(result, dict) else None
    if not isinstance(models, dict):
        raise ConfigError(f"{path}: needs models, as fabric bench serve --json writes")
    for name, one in models.items():
        try:
            rows = list(zip(*(one[key] for key in _LISTS), strict=True))
            done = [out for *_, out, error in rows if not error]
            usual = statistics.median(done) if done else None
            yield from (_bench_request(name, usual, *row) for row in rows)
        except (KeyError, TypeError, ValueError) as error:
            needs = ", ".join(_LISTS)
            raise ConfigError(f"{path}: models.{name}: needs {needs} ({error})") from error


def _bench_request(
    name: str, usual: float | None, at_s: float, prompt: int, output: int, error: str
) -> Arrival:
    if error and not output:
        if usual is None:
            raise ValueError("no request was completed, so that lengths are not known")
        output = round(usual)
    return Arrival(float(at_s), int(prompt), int(output), name)
