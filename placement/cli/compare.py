"""``fabric-plan compare``: placement policies on the same workload, side by side."""

from argparse import Namespace

from placement.cli import units
from placement.cli.inputs import read_input
from placement.cli.output import Answer, give
from placement.cli.progress import progress_bar
from placement.cli.reports import CompareReport
from placement.cli.tables import Cell, Table, met
from placement.planning.compare import compare_policies
from placement.planning.report import PolicyRow

HEADER = ("policy", "groups", "replicas", "training", "held out", "95% low", "high", "search")


def run(args: Namespace) -> int:
    """Let each policy place the models, and print what it attains."""
    inputs = read_input(args)
    with progress_bar(args.quiet) as progress:
        rows = compare_policies(inputs, args.policies, progress)
    table = Table("Policies", HEADER, tuple(_row(row, inputs.target) for row in rows))
    seeds = max(row.held_out.num_seeds for row in rows)
    notes = (f"Held out: the mean of workloads that no policy has seen; there are {seeds}.",)
    report = CompareReport(inputs.target, rows)
    give(Answer(f"Policies on {args.input}", report, (table,), notes), args)
    return 0


def _row(row: PolicyRow, target: float) -> tuple[str | Cell, ...]:
    held_out, ends = row.held_out, (units.MISSING, units.MISSING)
    if held_out.num_seeds > 1:
        ends = (units.percent(held_out.low), units.percent(held_out.high))
    return (
        row.policy,
        str(row.num_groups),
        str(row.num_replicas),
        units.percent(row.training),
        met(held_out.mean, target, units.percent(held_out.mean)),
        *ends,
        units.seconds(row.seconds),
    )
