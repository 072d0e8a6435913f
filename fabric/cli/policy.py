"""``fabric policy``: change how the running fabric schedules."""

import argparse
import asyncio
import sys

from fabric.cli.connection import add_connection_arguments, connect
from fabric.client import PolicyChange


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register the command."""
    parser = commands.add_parser("policy", help="change the scheduling policy; drops no request")
    parser.set_defaults(run=_policy)
    parser.add_argument("name", metavar="NAME", help="fcfs, priority, edf, mlfq, srw, ...")
    parser.add_argument("--group", default="", help="the device group; all if absent")
    parser.add_argument(
        "--set",
        dest="numbers",
        type=_number,
        action="append",
        default=[],
        metavar="NAME=X",
        help="a number that the policy goes by, such as alpha_s=1",
    )
    add_connection_arguments(parser)


def _policy(args: argparse.Namespace) -> int:
    changes = asyncio.run(_change(args))
    for change in changes:
        if change.error:
            print(f"fabric: {change.group}: {change.error}", file=sys.stderr)
        else:
            print(f"{change.group}: {change.before or '-'} -> {change.after}")
    return 1 if any(change.error for change in changes) else 0


async def _change(args: argparse.Namespace) -> tuple[PolicyChange, ...]:
    async with connect(args) as client:
        return await client.set_policy(args.name, args.group, numbers=dict(args.numbers))


def _number(text: str) -> tuple[str, float]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text}: expected NAME=X")
    return name, float(value)
