"""``fabric-plan plan``: models, workload and devices to a placement that ``fabric serve`` runs."""

from argparse import Namespace

from placement.cli.inputs import read_input
from placement.cli.output import Answer, give, writing
from placement.cli.progress import progress_bar
from placement.cli.serving_tables import group_table, model_table, plan_notes
from placement.planning.plan import Asked, make_plan


def run(args: Namespace) -> int:
    """Plan, print, and write the placement."""
    inputs = read_input(args)
    asked = Asked(args.thorough, args.fewest, args.headroom)
    with progress_bar(args.quiet) as progress:
        report = make_plan(inputs, asked, progress)
    notes = plan_notes(report)
    if args.out is not None:
        with writing(args.out):
            args.out.write_text(report.plan_yaml)
        notes = (*notes, f"Written to {args.out}: fabric serve CONFIG --plan {args.out}")
    tables = (group_table(report.serving.groups), model_table(report.serving, report.target))
    give(Answer(f"Placement of {args.input}", report, tables, notes), args)
    return 0
