"""``fabric load``, ``unload`` and ``pin``: bring models' weights to devices, take them away."""

import argparse
import asyncio
import sys

from fabric.cli.connection import add_connection_arguments, connect
from fabric.client import Residence, WeightState


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register the commands."""
    load = commands.add_parser("load", help="bring a model's weights to the device")
    load.set_defaults(run=_load)
    unload = commands.add_parser("unload", help="free a model's device memory; drops no request")
    unload.set_defaults(run=_unload)
    unload.add_argument(
        "--to",
        choices=[WeightState.HOST.value, WeightState.COLD.value],
        default=WeightState.HOST.value,
        help="where the weights go: host memory, or nowhere but disk (%(default)s)",
    )
    pin = commands.add_parser("pin", help="load a model's weights, and keep them on the device")
    pin.set_defaults(run=_pin)
    pin.add_argument("--off", action="store_true", help="let them go again when others need room")
    for parser in (load, unload, pin):
        parser.add_argument("model", metavar="MODEL")
        parser.add_argument(
            "--group", default="", help="the device group; all that host the model if absent"
        )
        parser.add_argument(
            "--timeout", type=float, default=60.0, metavar="S", help="wait so long (%(default)s)"
        )
        add_connection_arguments(parser)


def _load(args: argparse.Namespace) -> int:
    return _set(args, WeightState.RESIDENT, None)


def _unload(args: argparse.Namespace) -> int:
    return _set(args, WeightState(args.to), None)


def _pin(args: argparse.Namespace) -> int:
    return _set(args, None, False) if args.off else _set(args, WeightState.RESIDENT, True)


def _set(args: argparse.Namespace, state: WeightState | None, pinned: bool | None) -> int:
    residences = asyncio.run(_ask(args, state, pinned))
    for residence in residences:
        if residence.error:
            print(f"fabric: {residence.group}: {residence.error}", file=sys.stderr)
        else:
            is_pinned = ", pinned" if residence.pinned else ""
            there = f"{residence.state}{is_pinned}"
            print(f"{residence.group}: {args.model} is {there} ({residence.elapsed_s:.2f} s)")
    return 1 if any(residence.error for residence in residences) else 0


async def _ask(
    args: argparse.Namespace, state: WeightState | None, pinned: bool | None
) -> tuple[Residence, ...]:
    async with connect(args) as client:
        return await client.set_residence(
            args.model, state, pinned, group=args.group, timeout_s=args.timeout
        )
