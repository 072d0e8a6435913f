"""``fabric bench``: its kinds."""

import argparse
import importlib
from collections.abc import Sequence

_KINDS = {"serve": "bench_serve", "engine": "bench_engine"}


def add_parser(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", words: Sequence[str] = ()
) -> None:
    """Register the command.

    Args:
        commands: Takes it.
        words: What follows the command; a kind that it names is registered alone, since a machine
            may lack what others need.
    """
    parser = commands.add_parser("bench", help="measure the running fabric, or an engine alone")
    kinds = parser.add_subparsers(metavar="KIND", required=True)
    named = [_KINDS[word] for word in words[:1] if word in _KINDS]
    for module in named or _KINDS.values():
        importlib.import_module(f"fabric.cli.{module}").add_parser(kinds)
