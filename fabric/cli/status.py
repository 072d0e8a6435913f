"""``fabric status`` and ``fabric drain``: look at and steer the running fabric."""

import argparse
import asyncio
import dataclasses
import json
import sys

from fabric.cli.connection import add_connection_arguments, connect
from fabric.cli.hosted import describe_memory, describe_problems, format_models
from fabric.cli.requests import show_requests
from fabric.cli.table import format_table, terminal_width
from fabric.client import DrainOutcome, FabricStatus, GroupStatus

_HEADER = (
    "GROUP",
    "STATE",
    "EPOCH",
    "MODELS",
    "RUNNING",
    "WAITING",
    "KV %",
    "PREFIX HIT %",
    "TOKENS",
    "PREEMPTIONS",
    "POLICY",
    "SWAPPED",
    "HOST BLOCKS",
    "DISK BLOCKS",
)


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register both commands."""
    status = commands.add_parser("status", help="show the device groups and their load")
    status.set_defaults(run=_status)
    status.add_argument("--json", action="store_true", help="print JSON")
    status.add_argument("--requests", action="store_true", help="show requests in flight instead")
    status.add_argument("--group", default="", help="with --requests: of this device group only")
    status.add_argument("--request-id", default="", help="with --requests: this one only")
    status.add_argument("--limit", type=int, help="with --requests: at most so many")
    add_connection_arguments(status)
    drain = commands.add_parser("drain", help="finish what runs and take nothing new")
    drain.set_defaults(run=_drain)
    drain.add_argument("group", metavar="GROUP", nargs="?", default="", help="all if absent")
    drain.add_argument("--timeout", type=float, metavar="S", help="wait at most this long")
    add_connection_arguments(drain)


def _status(args: argparse.Namespace) -> int:
    if args.requests:
        return show_requests(args)
    status = asyncio.run(_fetch(args))
    if args.json:
        print(json.dumps(dataclasses.asdict(status), indent=2))
        return 0
    _show(status)
    return 0


def _show(status: FabricStatus) -> None:
    draining = ", draining" if status.draining else ""
    print(
        f"fabric {status.version}, up {status.uptime_s:.0f} s, "
        f"{status.num_inflight} requests in flight{draining}"
    )
    width = terminal_width()
    print(format_table(_HEADER, [_row(group) for group in status.groups], width=width))
    for group in status.groups:
        if group.reason:
            print(f"{group.name} is {group.state}: {group.reason}")
    models = format_models(status.groups, width)
    if models:
        print(f"\n{models}\n")
    for group in status.groups:
        if group.load.num_slabs:
            print(f"{group.name}: {describe_memory(group.load)}")
        for problem in describe_problems(group.load):
            print(f"{group.name}: {problem}")


def _drain(args: argparse.Namespace) -> int:
    outcome = asyncio.run(_ask_to_drain(args))
    name = args.group or "everything"
    if outcome.drained:
        print(f"{name}: drained")
        return 0
    print(f"fabric: {name}: {outcome.num_inflight} requests still in flight", file=sys.stderr)
    return 1


async def _fetch(args: argparse.Namespace) -> FabricStatus:
    async with connect(args) as client:
        return await client.status()


async def _ask_to_drain(args: argparse.Namespace) -> DrainOutcome:
    async with connect(args) as client:
        return await client.drain(args.group, timeout_s=args.timeout)


def _row(group: GroupStatus) -> tuple[str, ...]:
    load = group.load
    stalled = f" ({load.stalled_s:.0f} s)" if load.stalled_s >= 1 else ""
    return (
        group.name,
        group.state + stalled,
        str(group.epoch),
        ", ".join(group.models) or "-",
        str(load.num_running),
        str(load.num_waiting),
        _percent(load.num_blocks - load.num_free_blocks, load.num_blocks),
        _percent(load.prefix_hit_tokens, load.prefix_query_tokens),
        f"{load.num_tokens:,}",
        str(load.num_preemptions),
        load.policy or "-",
        str(load.num_swapped),
        str(load.num_host_blocks),
        str(load.num_disk_blocks),
    )


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}" if whole else "-"
