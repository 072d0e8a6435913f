"""The ``fabric`` command. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from fabric.core.errors import ConfigError, FabricError

# The commands of each module. The one that is called is imported alone: others may need what a
# machine lacks, and importing all takes longer than most of them.
_COMMANDS = {
    "demo": ("demo",),
    "serve": ("serve",),
    "apply": ("apply",),
    "generate": ("generate",),
    "models": ("models",),
    "status": ("status", "drain"),
    "residence": ("load", "unload", "pin"),
    "policy": ("policy",),
    "profile": ("profile",),
    "bench": ("bench",),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors are one line on stderr."""
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        args = _parser(words).parse_args(words)
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


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fabric", description="Serve many language models on few shared devices."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    called = [module for module, names in _COMMANDS.items() if words and words[0] in names]
    for name in called or _COMMANDS:
        module = importlib.import_module(f"fabric.cli.{name}")
        if name == "bench":
            module.add_parser(commands, words[1:])
        else:
            module.add_parser(commands)
    return parser
