"""``fabric-plan explain``: which constraint binds, and what would change if something else did."""

from argparse import Namespace

from placement.cli import units
from placement.cli.inputs import read_input
from placement.cli.output import Answer, give
from placement.cli.progress import progress_bar
from placement.cli.tables import Table
from placement.planning.reasons import explain_plan
from placement.planning.report import ExplainReport


def run(args: Namespace) -> int:
    """Explain, and print."""
    inputs = read_input(args)
    with progress_bar(args.quiet) as progress:
        report = explain_plan(
            inputs,
            model=args.model,
            group=args.group,
            changes=tuple(args.what_if),
            progress=progress,
        )
    give(Answer(f"Why requests miss: {args.input}", report, _tables(report)), args)
    return 0


def _tables(report: ExplainReport) -> tuple[Table, ...]:
    rows = tuple(
        (binding.subject, binding.name, units.percent(binding.share), binding.why)
        for binding in report.bindings
    )
    tables = [Table("What binds", ("subject", "constraint", "misses", "why"), rows)]
    if report.what_ifs:
        changes = tuple(
            (item.change, units.percent(item.before), units.percent(item.attainment))
            for item in report.what_ifs
        )
        tables.append(Table("What if", ("change", "now", "then"), changes))
    return tuple(tables)
