"""`fabric demo`: start a fabric, stream several answers at once, show how fast, end it all."""

import argparse

from fabric.cli.serve import add_config_arguments, read_config


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register the command."""
    parser = commands.add_parser("demo", help="start a fabric, stream some answers, and end it")
    add_config_arguments(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the demonstration."""
    # The demonstration is its own only client.
    arguments.overrides += ["router.host=127.0.0.1", "router.port=0", "router.tls=null"]
    config = read_config(arguments)
    from fabric.cli.showcase import show

    show(config)
    return 0
