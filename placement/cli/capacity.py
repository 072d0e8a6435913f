"""``fabric-plan capacity``: attainment over devices, rate, burstiness and objectives.

Source: AlpaServe (Li et al., OSDI 2023), section 6.2, which sweeps the same four.
"""

from argparse import Namespace

from fabric.core.errors import ConfigError
from placement.cli import units
from placement.cli.inputs import read_input
from placement.cli.output import Answer, give
from placement.cli.progress import progress_bar
from placement.cli.reports import CapacityReport
from placement.cli.tables import Cell, Table, met
from placement.config.changes import sweepable, usual_values
from placement.planning.capacity import DEFAULT_POLICIES, sweep
from placement.planning.report import Sweep, SweepPoint

TITLES = {"rate": "rate, times", "cv": "cv", "slo": "objectives, times", "devices": "devices"}


def run(args: Namespace) -> int:
    """Sweep, and print a table for each quantity."""
    inputs = read_input(args)
    given, quantities = dict(args.values), args.sweep or sweepable(inputs)
    if unswept := [name for name in given if name not in quantities]:
        raise ConfigError(f"--values {unswept[0]}: is not swept; swept: {', '.join(quantities)}")
    values = {name: given.get(name) or usual_values(inputs, name) for name in quantities}
    policies = args.policies or DEFAULT_POLICIES
    with progress_bar(args.quiet) as progress:
        sweeps = tuple(
            sweep(inputs, quantity, points, policies, progress)
            for quantity, points in values.items()
        )
    tables = tuple(_table(item, inputs.target) for item in sweeps)
    report = CapacityReport(inputs.target, sweeps)
    notes = (
        "Attainment is of requests that the search has not seen, request by request; late ones "
        "are refused.",
    )
    give(Answer(f"Capacity of {args.input}", report, tables, notes), args)
    return 0


def _table(item: Sweep, target: float) -> Table:
    names = dict.fromkeys(name for point in item.points for name, _ in point.attainment)
    rows = tuple(_row(point, list(names), target) for point in item.points)
    title = TITLES.get(item.quantity, item.quantity)
    return Table(f"Attainment over {item.quantity}", (title, *names), rows)


def _row(point: SweepPoint, names: list[str], target: float) -> tuple[str | Cell, ...]:
    shares = dict(point.attainment)
    cells = (
        met(shares[name], target, units.percent(shares[name])) if name in shares else units.MISSING
        for name in names
    )
    return (units.number(point.value), *cells)
