"""Recorded requests, as public traces have them; benchmarks and planners replay them."""

import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from fabric.core.errors import ConfigError

T = TypeVar("T")
Row = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request to come: seconds after the start, its lengths in tokens, and whom it asks."""

    at_s: float
    input_len: int
    output_len: int
    model: str = ""


def read_trace(path: Path) -> Iterator[Arrival]:
    """Read a trace: Azure LLM inference (``.csv``) or Mooncake (``.jsonl``); it starts at 0 s.

    Raises:
        ConfigError: The file can't be read, or a line is not of the format; names the line.
    """
    if path.suffix == ".csv":
        needs = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
        rows = read_csv(path, _azure_row, needs)
    else:
        rows = read_jsonl(path, _mooncake_row, ("timestamp", "input_length", "output_length"))
    start_s: float | None = None
    for row in rows:
        start_s = row.at_s if start_s is None else start_s
        yield Arrival(row.at_s - start_s, row.input_len, row.output_len)


def read_csv(path: Path, parse: Callable[[Row], T], needs: tuple[str, ...]) -> Iterator[T]:
    """Parse the lines of a CSV file with a header, one by one.

    Args:
        path: The file.
        parse: Makes a value of a line's columns.
        needs: The columns that it looks at, for errors.

    Raises:
        ConfigError: The file can't be read, or ``parse`` raised KeyError, TypeError or
            ValueError; names the line.
    """
    return _parsed(path, lambda lines: csv.DictReader(lines), parse, needs, first_line=2)


def read_jsonl(path: Path, parse: Callable[[Row], T], needs: tuple[str, ...]) -> Iterator[T]:
    """Parse the lines of a file of JSON objects, as :func:`read_csv` does those of CSV."""
    return _parsed(path, iter, lambda line: parse(_json_object(line)), needs, first_line=1)


def _parsed(
    path: Path,
    split: Callable[[Iterable[str]], Iterator[Row] | Iterator[str]],
    parse: Callable[..., T],
    needs: tuple[str, ...],
    first_line: int,
) -> Iterator[T]:
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            for number, row in enumerate(split(lines), start=first_line):
                try:
                    value = parse(row)
                except (KeyError, TypeError, ValueError) as error:
                    raise ConfigError(
                        f"{path}:{number}: needs {', '.join(needs)} ({error})"
                    ) from error
                yield value
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the trace {path}: {error}") from error


def _json_object(line: str) -> Row:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise TypeError("it is no JSON object")
    return row


def number_of(row: Row, key: str) -> float:
    """A finite number out of a line.

    Raises:
        KeyError: There is no such column.
        ValueError: It is no finite number.
    """
    value = float(str(row[key]))
    if not math.isfinite(value):
        raise ValueError(f"{key} is {value}")
    return value


def count_of(row: Row, key: str) -> int:
    """A whole number of at least 0 out of a line.

    Raises:
        KeyError: There is no such column.
        ValueError: It is no such number.
    """
    value = int(str(row[key]))
    if value < 0:
        raise ValueError(f"{key} is {value}")
    return value


def _azure_row(row: Row) -> Arrival:
    when = datetime.fromisoformat(str(row["TIMESTAMP"]))
    # Without a zone, a local one would move times where its clocks are put back.
    at_s = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    return Arrival(at_s, count_of(row, "ContextTokens"), count_of(row, "GeneratedTokens"))


def _mooncake_row(row: Row) -> Arrival:
    lengths = (count_of(row, "input_length"), count_of(row, "output_length"))
    return Arrival(number_of(row, "timestamp") / 1e3, *lengths)
