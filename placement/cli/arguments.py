"""What each command of ``fabric-plan`` takes; nothing else is loaded for it."""

from argparse import ArgumentParser
from pathlib import Path
from typing import TYPE_CHECKING

from placement.cli.parsing import (
    change,
    count,
    mesh,
    names,
    num_bytes,
    out_path,
    plot_path,
    positive,
    sweep_values,
    trace,
)

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    Commands = _SubParsersAction[ArgumentParser]

EPILOG = "deploy/plan.yaml is an example of an input: six models and eight devices."


def new_parser() -> ArgumentParser:
    """The parser of the whole command line."""
    parser = ArgumentParser(
        prog="fabric-plan",
        description="How many devices do these models need, who shares with whom, cut how?",
        epilog=EPILOG,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True, dest="command")
    for add in (_plan, _simulate, _parallelize, _capacity, _explain, _compare):
        add(commands)
    return parser


def _plan(commands: "Commands") -> None:
    text = "place models on devices, and predict how they will be served"
    parser = commands.add_parser("plan", help=text, description=text.capitalize())
    _add_input(parser)
    parser.add_argument(
        "--out", type=out_path, metavar="PLAN", help="write the placement for fabric serve --plan"
    )
    parser.add_argument(
        "--thorough",
        action="store_true",
        help="judge several placements by iterations, and the best by unseen workloads",
    )
    parser.add_argument(
        "--fewest", action="store_true", help="find the fewest devices for the target as well"
    )
    parser.add_argument(
        "--headroom",
        action="store_true",
        help="find how much faster requests may come, and how much tighter objectives may be",
    )
    _add_output(parser)


def _simulate(commands: "Commands") -> None:
    text = "serve a workload with the fabric's own scheduler on a virtual clock"
    parser = commands.add_parser("simulate", help=text, description=text.capitalize())
    parser.add_argument("plan", type=Path, metavar="PLAN", help="a placement, as plan writes it")
    _add_input(parser)
    parser.add_argument(
        "--trace",
        type=trace,
        metavar="FORMAT:FILE",
        help="replay a trace: azure_llm, maf1, maf2, mooncake or journal",
    )
    parser.add_argument(
        "--policy", metavar="NAME", help="who runs first: fcfs, mlfq, srw, edf, ..."
    )
    parser.add_argument(
        "--routing", metavar="NAME", help="predicted, least_loaded, round_robin, ..."
    )
    parser.add_argument("--seed", type=int, help="of the workload that is drawn")
    _add_output(parser)


def _parallelize(commands: "Commands") -> None:
    text = "cut one model over a mesh of devices: the Pareto front of latency, rate and memory"
    parser = commands.add_parser("parallelize", help=text, description=text.capitalize())
    parser.add_argument("model", metavar="MODEL", help="a catalog name, or a config.json")
    parser.add_argument("--mesh", type=mesh, default=(1, 4), metavar="NODESxDEVICES")
    parser.add_argument("--device", default="a100-80gb", metavar="TYPE", help="a catalog name")
    parser.add_argument(
        "--prefill", type=count, default=2048, metavar="TOKENS", help="of a prefill iteration"
    )
    parser.add_argument(
        "--decode", type=count, default=32, metavar="SEQUENCES", help="of a decode iteration"
    )
    parser.add_argument(
        "--context", type=count, default=1024, metavar="TOKENS", help="of each of them"
    )
    parser.add_argument(
        "--steps",
        type=positive,
        default=128.0,
        metavar="N",
        help="decode iterations for each prefill iteration",
    )
    parser.add_argument(
        "--memory", type=num_bytes, metavar="SIZE", help="of each device, such as 20GiB"
    )
    _add_output(parser)


def _capacity(commands: "Commands") -> None:
    text = "attainment over devices, rate, burstiness and objectives"
    parser = commands.add_parser("capacity", help=text, description=text.capitalize())
    _add_input(parser)
    parser.add_argument(
        "--sweep",
        type=names,
        metavar="QUANTITY,...",
        help="devices, rate, cv, slo; if absent, all that the input has",
    )
    parser.add_argument(
        "--values",
        type=sweep_values,
        action="append",
        default=[],
        metavar="QUANTITY=X,...",
        help="points of a sweep: devices and cv as they are, rate and slo times the input's",
    )
    parser.add_argument(
        "--policies", type=names, metavar="NAME,...", help="lines of the figure, as for compare"
    )
    _add_output(parser)


def _explain(commands: "Commands") -> None:
    text = "say which constraint binds, and what would change it"
    parser = commands.add_parser("explain", help=text, description=text.capitalize())
    _add_input(parser)
    subject = parser.add_mutually_exclusive_group()
    subject.add_argument("--model", metavar="ID", help="of one model")
    subject.add_argument("--group", metavar="NAME", help="of one group of the plan, such as g0")
    parser.add_argument(
        "--what-if",
        type=change,
        action="append",
        default=[],
        metavar="QUANTITY=X",
        help="devices=16, TYPE=4, cv=1, rate=2 (twice), slo=0.5 (half); may be repeated",
    )
    _add_output(parser)


def _compare(commands: "Commands") -> None:
    text = "placement policies side by side, on requests that none of them has seen"
    parser = commands.add_parser("compare", help=text, description=text.capitalize())
    _add_input(parser)
    parser.add_argument(
        "--policies",
        type=names,
        metavar="NAME,...",
        help="ours, alpaserve, selective-replication, round-robin, ...; all if absent",
    )
    _add_output(parser)


def _add_input(parser: ArgumentParser) -> None:
    parser.add_argument("input", type=Path, metavar="INPUT", help="models, devices and workload")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="A.B=C",
        help="put a value on top of the input's, such as devices.0.count=16",
    )


def _add_output(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object, no tables")
    parser.add_argument(
        "--plot",
        type=plot_path,
        metavar="FILE",
        help="draw it: .png, or .html for a page by itself",
    )
    parser.add_argument("--quiet", action="store_true", help="print no tables and no progress")
