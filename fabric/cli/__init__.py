"""The ``fabric`` command. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""

import argparse
import os
import sys
from collections.abc import Sequence

from fabric.cli import (
    apply,
    bench,
    demo,
    generate,
    models,
    policy,
    profile,
    residence,
    serve,
    status,
)
from fabric.core.errors import ConfigError, FabricError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors are one line on stderr."""
    args = _parser().parse_args(argv)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
    except FabricError as error:
        print(f"fabric: {error.message}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except ModuleNotFoundError as error:
        # The base install is the client alone.
        print(f"fabric: {error}; try: pip install 'llm-fabric[serve]'", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("fabric: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (head, less) has left; the interpreter's last flush must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fabric", description="Serve many language models on few shared devices."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for module in (demo, serve, apply, generate, models, status, residence, policy, profile, bench):
        module.add_parser(commands)
    return parser
