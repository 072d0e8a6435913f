"""``fabric models``: what is served, and where its weights are."""

import argparse
import asyncio
import dataclasses
import json

from fabric.cli.connection import add_connection_arguments, connect
from fabric.cli.table import format_table, terminal_width
from fabric.client import FabricStatus, ModelStatus, WeightState

_HEADER = ("MODEL", "STATE", "ARCHITECTURE", "DTYPE", "CONTEXT", "PARAMETERS", "GROUPS")


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register the command."""
    parser = commands.add_parser("models", help="list the served models")
    parser.set_defaults(run=_models)
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_connection_arguments(parser)


def _models(args: argparse.Namespace) -> int:
    models, status = asyncio.run(_fetch(args))
    served = [(model, _weights(model.card.model, status)) for model in models]
    if args.json:
        print(json.dumps([_as_json(*item) for item in served], indent=2))
    else:
        rows = [_row(*item) for item in served]
        print(format_table(_HEADER, rows, width=terminal_width()))
    return 0


async def _fetch(args: argparse.Namespace) -> tuple[tuple[ModelStatus, ...], FabricStatus]:
    async with connect(args) as client:
        return await asyncio.gather(client.models(), client.status())


def _weights(model: str, status: FabricStatus) -> dict[str, WeightState]:
    """Where the model's weights are, by device group."""
    return {
        group.name: load.state
        for group in status.groups
        for load in group.load.models
        if load.model == model
    }


def _as_json(model: ModelStatus, weights: dict[str, WeightState]) -> dict[str, object]:
    card = dataclasses.asdict(model.card)
    # Where the tokenizer lies is known on the server alone.
    del card["tokenizer_path"]
    names = {"id": card.pop("model"), "state": model.state}
    return {**names, **card, "groups": model.groups, "weights": weights}


def _row(model: ModelStatus, weights: dict[str, WeightState]) -> tuple[str, ...]:
    card = model.card
    groups = (f"{name} ({weights[name]})" if name in weights else name for name in model.groups)
    return (
        card.model,
        model.state,
        card.architecture,
        card.dtype if card.quantization == "none" else f"{card.dtype} {card.quantization}",
        str(card.max_model_len),
        f"{card.num_parameters:,}",
        ", ".join(groups) or "-",
    )
