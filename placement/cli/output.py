"""Gives a command's answer in the form that was asked for: tables, JSON, a figure."""

import importlib
import json
import math
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path

from fabric.core.errors import ConfigError
from placement.cli.tables import Table, print_tables


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command found: ``value`` becomes JSON and the figure; ``notes`` follow the tables."""

    title: str
    value: object
    tables: tuple[Table, ...]
    notes: tuple[str, ...] = ()


def give(answer: Answer, args: Namespace) -> None:
    """Print an answer and draw it, as the command line says.

    Raises:
        ConfigError: The figure's file can't be written.
    """
    if args.json:
        print(json.dumps(as_json(answer.value), indent=1, allow_nan=False))
    elif not args.quiet:
        print_tables(answer.tables, sys.stdout)
        if answer.notes:
            print("\n" + "\n".join(answer.notes))
    if args.plot is not None:
        # Loading it takes longer than most answers.
        page = importlib.import_module("placement.cli.page")
        with writing(args.plot):
            page.save(args.plot, answer.title, answer.value, answer.tables, answer.notes)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """While a file is written in this, what fails names it.

    Raises:
        ConfigError: It can't be written.
    """
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error


def as_json(value: object) -> object:
    """Dataclasses as objects, with what no JSON number is as null."""
    if is_dataclass(value):
        return {item.name: as_json(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
