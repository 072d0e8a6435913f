"""The ``fabric-plan`` command. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""

import importlib
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence

from fabric.core.errors import ConfigError, FabricError
from placement.cli.arguments import new_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors are one line on stderr."""
    args = new_parser().parse_args(argv)
    try:
        code = _command(args.command)(args)
        sys.stdout.flush()
    except FabricError as error:
        print(f"fabric-plan: {error.message}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except ModuleNotFoundError as error:
        # The base install is the client alone.
        print(f"fabric-plan: {error}; try: pip install 'llm-fabric[plan]'", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("fabric-plan: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (head, less) has left; the interpreter's last flush must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


def _command(name: str) -> Callable[[Namespace], int]:
    """What runs a command: only that one is loaded, so that help comes at once."""
    run: Callable[[Namespace], int] = importlib.import_module(f"placement.cli.{name}").run
    return run
