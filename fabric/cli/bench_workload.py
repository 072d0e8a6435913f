"""When a benchmark's requests come, and how long they are: drawn by a seed, or from a trace."""

import csv
import itertools
import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from fabric.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request to come: seconds after the start, its lengths in tokens, and whom it asks."""

    at_s: float
    input_len: int
    output_len: int
    model: str = ""


def gamma_arrivals(num_requests: int, rate_per_s: float, cv: float, seed: int) -> list[float]:
    """Draw arrival times whose gaps are gamma distributed; the first is at 0.

    Args:
        num_requests: How many.
        rate_per_s: Mean rate; ``inf`` sends everything at once.
        cv: Coefficient of variation of the gaps: 0 is a clock, 1 Poisson, more is bursty.
        seed: Makes the draw repeatable.

    Source: AlpaServe (Li et al., OSDI 2023), section 6: Gamma arrival processes.
    """
    if num_requests == 0:
        return []
    mean_s = 1.0 / rate_per_s
    if cv == 0 or mean_s == 0:
        return [i * mean_s for i in range(num_requests)]
    shape, rng = 1.0 / cv**2, random.Random(seed)
    gaps = (rng.gammavariate(shape, mean_s / shape) for _ in range(num_requests - 1))
    return list(itertools.accumulate(gaps, initial=0.0))


def read_trace(path: Path) -> Iterator[Arrival]:
    """Read a trace: Azure LLM inference (``.csv``) or Mooncake (``.jsonl``); it starts at 0 s.

    Raises:
        ConfigError: The file can't be read, or a line is not of the format; names the line.
    """
    parse = _azure_rows if path.suffix == ".csv" else _mooncake_rows
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            start_s: float | None = None
            for row in parse(path, lines):
                start_s = row.at_s if start_s is None else start_s
                yield Arrival(row.at_s - start_s, row.input_len, row.output_len)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the trace {path}: {error}") from error


def _azure_rows(path: Path, lines: Iterable[str]) -> Iterator[Arrival]:
    for number, row in enumerate(csv.DictReader(lines), start=2):
        try:
            at_s = datetime.fromisoformat(row["TIMESTAMP"]).timestamp()
            yield Arrival(at_s, int(row["ContextTokens"]), int(row["GeneratedTokens"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"{path}:{number}: needs TIMESTAMP, ContextTokens, GeneratedTokens ({error})"
            ) from error


def _mooncake_rows(path: Path, lines: Iterable[str]) -> Iterator[Arrival]:
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            at_s = float(row["timestamp"]) / 1e3
            yield Arrival(at_s, int(row["input_length"]), int(row["output_length"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"{path}:{number}: needs timestamp, input_length, output_length ({error})"
            ) from error


def fit_trace(
    trace: Iterable[Arrival], num_requests: int, scale: float, max_input: int, max_output: int
) -> list[Arrival]:
    """Take a trace's first requests; multiply their times by ``scale`` and cap their lengths."""
    return [
        Arrival(
            row.at_s * scale,
            min(max(row.input_len, 1), max_input),
            min(max(row.output_len, 1), max_output),
        )
        for row in itertools.islice(trace, num_requests)
    ]
