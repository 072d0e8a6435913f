"""`fabric serve`: run a fabric until it is told to stop."""

import argparse
import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fabric.config import FabricConfig

DEMO_CONFIG = Path(__file__).with_name("demo.yaml")


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register the command."""
    parser = commands.add_parser("serve", help="serve the models of a configuration file")
    add_config_arguments(parser)
    parser.add_argument(
        "--plan", type=Path, help="YAML with models and groups to serve instead of the file's"
    )
    parser.set_defaults(run=run)


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that name a configuration."""
    parser.add_argument(
        "config",
        nargs="?",
        type=Path,
        default=DEMO_CONFIG,
        help="YAML file; without one, SmolLM2-135M-Instruct on one device group",
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="a.b=c",
        help="change one value of the file, such as groups.0.kv_cache=1GiB",
    )


def read_config(arguments: argparse.Namespace) -> "FabricConfig":
    """Load what the arguments name."""
    from fabric.config import load_config

    return load_config(arguments.config, tuple(arguments.overrides))


def run(arguments: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM."""
    config = read_config(arguments)
    if arguments.plan is not None:
        from fabric.config import load_plan

        config = load_plan(config, arguments.plan)
    from rich.console import Console

    from fabric.cli.launch import launched

    console = Console(stderr=True)
    try:
        with launched(config, console) as target:
            names = ", ".join(model.id for model in config.models)
            print(f"serving {names} at {target}; Ctrl-C ends it", flush=True)
            threading.Event().wait()
    except KeyboardInterrupt:
        console.print("stopped")
    return 0
