"""``fabric status --requests``: where each request is, why it had to give way, what that cost."""

import argparse
import asyncio
import dataclasses
import json
import math
import sys

from fabric.cli.connection import connect
from fabric.cli.table import format_table, terminal_width
from fabric.client import Explanation, RequestStatus

_HEADER = (
    "REQUEST",
    "MODEL",
    "TENANT",
    "GROUP",
    "PHASE",
    "PRIO",
    "LEVEL",
    "PROMPT",
    "OUTPUT",
    "BLOCKS",
    "PARKED",
    "TIER",
    "PREEMPTIONS",
    "QUEUE S",
    "LOAD S",
    "PREFILL S",
    "DECODE S",
    "SWAPPED S",
    "MOVED MB",
    "LAST PREEMPTED",
)


def show_requests(args: argparse.Namespace) -> int:
    """Print the requests in flight; fails if a device group did not tell of its own."""
    explanation = asyncio.run(_fetch(args))
    if args.json:
        print(json.dumps(_as_json(explanation), indent=2))
    else:
        rows = [_row(request) for request in explanation.requests]
        print(format_table(_HEADER, rows, width=terminal_width()))
        if explanation.num_omitted:
            print(f"and {explanation.num_omitted} more")
    for group in explanation.unanswered:
        print(f"fabric: device group {group} does not answer", file=sys.stderr)
    return 1 if explanation.unanswered else 0


async def _fetch(args: argparse.Namespace) -> Explanation:
    async with connect(args) as client:
        return await client.explain(args.group, request_id=args.request_id, limit=args.limit)


def _as_json(explanation: Explanation) -> dict[str, object]:
    tree = dataclasses.asdict(explanation)
    for request in tree["requests"]:
        # JSON has no infinity, which is the rank of those that may wait forever.
        request["rank"] = [x if math.isfinite(x) else str(x) for x in request["rank"]]
    return tree


def _row(request: RequestStatus) -> tuple[str, ...]:
    timing = request.timing
    return (
        _printable(request.request_id),
        request.model,
        _printable(request.tenant) or "-",
        timing.group,
        request.phase.replace("_", " "),
        str(request.priority),
        "-" if request.level is None else str(request.level),
        str(request.num_prompt_tokens),
        str(request.num_output_tokens),
        str(request.num_blocks),
        str(request.num_parked_blocks),
        request.tier or "-",
        str(timing.num_preemptions),
        f"{timing.queue_s:.2f}",
        f"{timing.load_s:.2f}",
        f"{timing.prefill_s:.2f}",
        f"{timing.decode_s:.2f}",
        f"{timing.swapped_s:.2f}",
        f"{timing.swapped_bytes / 1e6:.1f}",
        _printable(request.last_preemption) or "-",
    )


def _printable(text: str) -> str:
    """The text without what clients could use to write all over a terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)
