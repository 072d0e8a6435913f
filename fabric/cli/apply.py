"""``fabric apply``: move the running fabric to another placement plan."""

import argparse
import asyncio
from pathlib import Path

from fabric.cli.connection import add_connection_arguments, connect
from fabric.client import PlanProgress, StepState
from fabric.core.errors import ConfigError


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register the command."""
    parser = commands.add_parser(
        "apply", help="move the running fabric to another placement plan; drops no request"
    )
    parser.set_defaults(run=_apply)
    parser.add_argument(
        "plan", type=Path, metavar="PLAN", help="YAML with the models and groups of a configuration"
    )
    parser.add_argument("--dry-run", action="store_true", help="only show the steps")
    parser.add_argument(
        "--timeout",
        type=float,
        metavar="S",
        help="how long new groups may take to serve, and old ones to finish, each (600)",
    )
    add_connection_arguments(parser)


def _apply(args: argparse.Namespace) -> int:
    try:
        text = args.plan.read_text()
    except OSError as error:
        raise ConfigError(f"{args.plan}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{args.plan}: not YAML: {error}") from error
    num_steps = asyncio.run(_follow(args, text))
    if num_steps == 0:
        print("nothing to do: these groups run already")
    return 0


async def _follow(args: argparse.Namespace, text: str) -> int:
    num_steps = 0
    async with connect(args) as client:
        steps = client.apply_plan(text, dry_run=args.dry_run, timeout_s=args.timeout)
        async for progress in steps:
            num_steps = max(num_steps, progress.step + 1)
            print(_line(progress), flush=True)
    return num_steps


def _line(progress: PlanProgress) -> str:
    state = "" if progress.state is StepState.PLANNED else f"{progress.state}: "
    error = f" ({progress.error})" if progress.error else ""
    return f"{progress.step + 1}. {state}{progress.description}{error}"
