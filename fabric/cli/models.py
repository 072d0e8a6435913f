"""``fabric models``: what is served."""

import argparse
import asyncio
import dataclasses
import json

from fabric.cli.connection import add_connection_arguments, connect
from fabric.cli.table import format_table
from fabric.client import ModelStatus

_HEADER = ("MODEL", "STATE", "ARCHITECTURE", "DTYPE", "CONTEXT", "PARAMETERS", "GROUPS")


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register the command."""
    parser = commands.add_parser("models", help="list the served models")
    parser.set_defaults(run=_models)
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_connection_arguments(parser)


def _models(args: argparse.Namespace) -> int:
    models = asyncio.run(_fetch(args))
    if args.json:
        print(json.dumps([_as_json(model) for model in models], indent=2))
    else:
        print(format_table(_HEADER, [_row(model) for model in models]))
    return 0


async def _fetch(args: argparse.Namespace) -> tuple[ModelStatus, ...]:
    async with connect(args) as client:
        return await client.models()


def _as_json(model: ModelStatus) -> dict[str, object]:
    card = dataclasses.asdict(model.card)
    # Where the tokenizer lies is known on the server alone.
    del card["tokenizer_path"]
    return {"id": card.pop("model"), "state": model.state, **card, "groups": model.groups}


def _row(model: ModelStatus) -> tuple[str, ...]:
    card = model.card
    return (
        card.model,
        model.state,
        card.architecture,
        card.dtype,
        str(card.max_model_len),
        f"{card.num_parameters:,}",
        ", ".join(model.groups) or "-",
    )
