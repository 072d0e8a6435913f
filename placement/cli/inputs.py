"""Reads what a command is about."""

from argparse import Namespace

from placement.config import PlanInput, load_input


def read_input(args: Namespace, *more: str) -> PlanInput:
    """The input file with what the command line puts on top.

    Args:
        args: The command line.
        more: ``a.b=c`` settings that other options stand for.

    Raises:
        ConfigError: The file or a setting is wrong; names the key.
    """
    return load_input(args.input, (*args.overrides, *more))
