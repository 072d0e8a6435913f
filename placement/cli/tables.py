"""Tables: in boxes and colours on a terminal, in plain columns where something else reads them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

_GAP = "  "
_NUMBER = re.compile(r"-?|[0-9.,]+( ?[A-Za-z%]{1,4})?")


@dataclass(frozen=True, slots=True)
class Cell:
    """A text, and how it looks on a terminal, in rich's words."""

    text: str
    style: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under a header; ``title`` says what they are."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str | Cell, ...], ...]

    def texts(self) -> list[list[str]]:
        """The rows without styles."""
        return [[_cell(cell).text for cell in row] for row in self.rows]

    def is_numeric(self, column: int) -> bool:
        """Whether all cells of a column are numbers, with or without a unit."""
        cells = [row[column] for row in self.texts()]
        return bool(cells) and all(map(_NUMBER.fullmatch, cells))


def met(share: float, target: float, text: str) -> Cell:
    """A share in green if the target is met, in yellow near it, else in red."""
    near = share >= target - 0.02
    return Cell(text, "green" if share >= target else "yellow" if near else "red")


def print_tables(tables: Sequence[Table], stream: TextIO) -> None:
    """Print tables one below the other."""
    if stream.isatty():
        console = Console(file=stream)
        for table in tables:
            console.print(_boxed(table))
    else:
        print("\n\n".join(plain(table) for table in tables), file=stream)


def plain(table: Table) -> str:
    """A table as aligned lines."""
    rows = [list(table.header), *table.texts()]
    widths = [max(len(row[index]) for row in rows) for index in range(len(table.header))]
    is_right = [table.is_numeric(index) for index in range(len(table.header))]
    lines = [
        _GAP.join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, is_right, strict=True)
        ).rstrip()
        for row in rows
    ]
    return "\n".join([table.title, *lines])


def _boxed(table: Table) -> RichTable:
    boxed = RichTable(
        title=Text(table.title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD
    )
    for index, name in enumerate(table.header):
        boxed.add_column(
            Text(name, style="bold"), justify="right" if table.is_numeric(index) else "left"
        )
    for row in table.rows:
        boxed.add_row(*(Text(_cell(cell).text, style=_cell(cell).style) for cell in row))
    return boxed


def _cell(cell: str | Cell) -> Cell:
    return Cell(cell) if isinstance(cell, str) else cell
