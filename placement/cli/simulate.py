"""``fabric-plan simulate``: what a placement does with a workload, iteration by iteration."""

from argparse import Namespace

from placement.cli.inputs import read_input
from placement.cli.output import Answer, give
from placement.cli.progress import progress_bar
from placement.cli.serving_tables import attainment_table, group_table, latency_table
from placement.config.changes import with_trace
from placement.planning.simulate import simulate_plan

SETTINGS = (("policy", "serving.policy"), ("routing", "serving.routing"), ("seed", "workload.seed"))


def run(args: Namespace) -> int:
    """Simulate and print."""
    given = [(key, getattr(args, name)) for name, key in SETTINGS]
    inputs = read_input(args, *(f"{key}={value}" for key, value in given if value is not None))
    if args.trace is not None:
        inputs = with_trace(inputs, *args.trace)
    with progress_bar(args.quiet) as progress:
        report = simulate_plan(inputs, args.plan, progress=progress)
    rate = report.num_iterations / report.seconds if report.seconds else 0.0
    notes = (f"{report.num_iterations:,} iterations, {rate:,.0f} a second.",)
    tables = (
        group_table(report.groups),
        attainment_table(report, inputs.target),
        latency_table(report),
    )
    give(Answer(f"{args.plan} serves {args.input}", report, tables, notes), args)
    return 0
