"""Traces as files: JSON lines, first what the trace is, then a request a line."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fabric.core.errors import ConfigError
from fabric.core.traces import Row, count_of, number_of, read_jsonl
from placement.workload.trace import Trace

FORMAT = "llm-fabric trace 1"
_HEADER = ("format", "names", "duration_s")
_REQUEST = ("at_s", "model", "prompt_tokens", "output_tokens")


@dataclass(frozen=True, slots=True)
class _Header:
    names: tuple[str, ...]
    duration_s: float


@dataclass(frozen=True, slots=True)
class _Request:
    at_s: float
    model: str
    prompt_tokens: int
    output_tokens: int


def save_trace(trace: Trace, path: Path) -> None:
    """Write a trace; :func:`load_trace` reads the same one.

    Raises:
        ConfigError: The file can't be written.
    """
    header = (FORMAT, list(trace.names), trace.duration_s)
    rows = zip(
        trace.arrivals_s.tolist(),
        (trace.names[model] for model in trace.models),
        trace.prompt_tokens.tolist(),
        trace.output_tokens.tolist(),
        strict=True,
    )
    try:
        with path.open("w", encoding="utf-8") as file:
            file.write(json.dumps(dict(zip(_HEADER, header, strict=True))) + "\n")
            for row in rows:
                file.write(json.dumps(dict(zip(_REQUEST, row, strict=True))) + "\n")
    except OSError as error:
        raise ConfigError(f"cannot write the trace {path}: {error}") from error


def load_trace(path: Path) -> Trace:
    """Read what :func:`save_trace` wrote.

    Raises:
        ConfigError: The file can't be read or is no such trace; names the line.
    """
    rows = read_jsonl(path, _parse, _REQUEST)
    header = next(rows, None)
    if not isinstance(header, _Header):
        raise ConfigError(f"{path}:1: needs {', '.join(_HEADER)}; format is {FORMAT!r}")
    numbers = {name: number for number, name in enumerate(header.names)}
    requests: list[_Request] = []
    for line, row in enumerate(rows, start=2):
        before_s = requests[-1].at_s if requests else 0.0
        if not isinstance(row, _Request) or row.model not in numbers:
            raise ConfigError(f"{path}:{line}: needs a model of {', '.join(header.names)}")
        if not before_s <= row.at_s <= header.duration_s:
            raise ConfigError(
                f"{path}:{line}: at_s is {row.at_s}; {before_s} to {header.duration_s} is needed"
            )
        requests.append(row)
    return Trace(
        header.names,
        header.duration_s,
        np.array([row.at_s for row in requests], np.float64),
        np.array([numbers[row.model] for row in requests], np.int32),
        np.array([row.prompt_tokens for row in requests], np.int32),
        np.array([row.output_tokens for row in requests], np.int32),
    )


def _parse(row: Row) -> _Header | _Request:
    if "format" in row:
        names = row["names"]
        if row["format"] != FORMAT or not isinstance(names, list):
            raise ValueError(f"format is {row['format']!r}; this llm-fabric reads {FORMAT!r}")
        return _Header(tuple(str(name) for name in names), number_of(row, "duration_s"))
    lengths = (count_of(row, "prompt_tokens"), count_of(row, "output_tokens"))
    return _Request(number_of(row, "at_s"), str(row["model"]), *lengths)
