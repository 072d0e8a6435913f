"""Tables of what a model's operators do on the devices of a stage."""

from collections.abc import Sequence

from placement.cli.reports import StageReport
from placement.cli.tables import Table

WEIGHTS = " weights"


def strategy_table(stages: Sequence[StageReport], number: int, phases: Sequence[str]) -> Table:
    """Operators of a stage: how their weights are kept, and how they run in each phase."""
    stage = stages[number]
    columns = ("kept", *phases)
    rows: dict[str, dict[str, str]] = {}
    for name, what in stage.strategies:
        operator, column = _place(name, phases)
        rows.setdefault(operator, {})[column] = what
    cells = tuple(
        (operator, *(found.get(column, "") for column in columns))
        for operator, found in rows.items()
    )
    where = f" of stage {number + 1} of {len(stages)}" if len(stages) > 1 else ""
    title = f"Fastest: operators{where} on {stage.nodes}x{stage.devices}"
    return Table(title, ("operator", *columns), cells)


def _place(name: str, phases: Sequence[str]) -> tuple[str, str]:
    """The operator that a row is about, and its column."""
    for phase in phases:
        if name.endswith(f" ({phase})"):
            return name.removesuffix(f" ({phase})"), phase
    return name.removesuffix(WEIGHTS), "kept"
