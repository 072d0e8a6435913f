"""Saves figures: as images, or as pages that need nothing else."""

import html
import io
from pathlib import Path

from matplotlib.figure import Figure

from placement.cli.plots.front import draw_front
from placement.cli.plots.policies import draw_policies, draw_sweeps
from placement.cli.plots.reasons import draw_reasons
from placement.cli.plots.serving import draw_serving
from placement.cli.plots.style import styled
from placement.cli.reports import CapacityReport, CompareReport, FrontReport
from placement.cli.tables import Cell, Table
from placement.planning.report import ExplainReport, PlanReport, ServingReport

DOTS_PER_INCH = 144
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #22262b; margin: 2rem auto; max-width: 72rem;
  padding: 0 1.5rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
svg { width: 100%; height: auto; }
div { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .3rem .9rem .3rem 0; text-align: left; border-bottom: 1px solid #d6dade; }
.number { text-align: right; }
.green { color: #00704f; } .yellow { color: #8a5b00; } .red { color: #b34700; font-weight: 600; }
"""


def figure_of(value: object) -> Figure:
    """The figure of an answer.

    Raises:
        TypeError: There is none.
    """
    match value:
        case PlanReport():
            return draw_serving(value.serving, value.target)
        case ServingReport():
            return draw_serving(value, None)
        case CapacityReport():
            return draw_sweeps(value.sweeps, value.target)
        case CompareReport():
            return draw_policies(value.rows, value.target)
        case ExplainReport():
            return draw_reasons(value)
        case FrontReport():
            return draw_front(value)
    raise TypeError(f"{type(value).__name__} has no figure")


def save(
    path: Path, title: str, value: object, tables: tuple[Table, ...], notes: tuple[str, ...]
) -> None:
    """Draw an answer to a file: ``.png``, or ``.html`` with its tables as well.

    Raises:
        OSError: The file can't be written.
    """
    with styled():
        figure = figure_of(value)
        if path.suffix == ".png":
            figure.savefig(path, dpi=DOTS_PER_INCH)
            return
        drawn = io.StringIO()
        # Without a date, equal answers are equal files.
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    path.write_text(_page(title, drawn.getvalue(), tables, notes), encoding="utf-8")


def _page(title: str, svg: str, tables: tuple[Table, ...], notes: tuple[str, ...]) -> str:
    name = html.escape(title)
    # The XML declaration and doctype before it have no place inside a page.
    figure = svg[svg.index("<svg") :]
    parts = [f"<h1>{name}</h1>", figure, *map(_table, tables)]
    parts += [f"<p>{html.escape(note)}</p>" for note in notes]
    head = f'<meta charset="utf-8"><title>{name}</title><style>{STYLE}</style>'
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n'


def _table(table: Table) -> str:
    header = _row("th", table.header, table)
    rows = "".join(_row("td", row, table) for row in table.rows)
    return f"<h2>{html.escape(table.title)}</h2><div><table>{header}{rows}</table></div>"


def _row(tag: str, cells: tuple[str | Cell, ...], table: Table) -> str:
    tagged = (_tagged(tag, cell, table.is_numeric(index)) for index, cell in enumerate(cells))
    return f"<tr>{''.join(tagged)}</tr>"


def _tagged(tag: str, cell: str | Cell, is_number: bool) -> str:
    text, style = (cell, "") if isinstance(cell, str) else (cell.text, cell.style)
    classes = " ".join(filter(None, ("number" if is_number else "", style)))
    mark = f' class="{classes}"' if classes else ""
    return f"<{tag}{mark}>{html.escape(text)}</{tag}>"
