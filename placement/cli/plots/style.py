"""How all figures look: one palette that the colour-blind can tell apart, and little else."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

# Source: Okabe and Ito, Color Universal Design (2008), but for their yellow, too pale for lines.
BLUE, ORANGE, GREEN, RED, SKY, PINK = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7"
)  # fmt: skip
PALETTE = (BLUE, RED, GREEN, ORANGE, PINK, SKY, "#5B5B5B")
INK, FAINT = "#22262B", "#D6DADF"
MARKERS = "osD^vP*"


@contextmanager
def styled() -> Iterator[None]:
    """While figures are made and saved in this, they look as ours do."""
    with matplotlib.rc_context(
        {
            "axes.edgecolor": FAINT,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.labelcolor": INK,
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlelocation": "left",
            "axes.titlesize": 11,
            "axes.titleweight": "bold",
            "font.size": 9,
            "grid.color": FAINT,
            "grid.linewidth": 0.6,
            "legend.frameon": False,
            "lines.linewidth": 1.8,
            "lines.markersize": 4.5,
            # Equal figures are equal files.
            "svg.hashsalt": "fabric-plan",
            "text.color": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "xtick.major.size": 0,
            "ytick.major.size": 0,
        }
    ):
        yield


def new_figure(width: float, height: float) -> Figure:
    """A figure of so many inches that can be saved without a display."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def as_shares(axes: Axes, *, along: str) -> None:
    """Make an axis (``x`` or ``y``) one of shares, from nothing to all."""
    axis = axes.xaxis if along == "x" else axes.yaxis
    axis.set_major_formatter(PercentFormatter(1.0))
    axes.set(**{f"{along}lim": (0.0, 1.02)})


def share_floor(shares: Iterable[float], *, steps: int) -> float:
    """Where an axis of such shares may begin, in so many steps from nothing to all."""
    known = [share for share in shares if math.isfinite(share)]
    return max(0.0, math.floor(steps * min(known, default=0.0) - 0.1) / steps)


def as_seconds(axes: Axes) -> None:
    """Make the x axis one of seconds, on a logarithmic scale."""
    axes.set_xscale("log")
    # Decades alone are too few labels where all values lie in one.
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
    axes.xaxis.set_minor_formatter(FuncFormatter(_minor_seconds(axes)))
    axes.tick_params(axis="x", which="minor", labelsize=8, length=0)


def _minor_seconds(axes: Axes) -> Callable[[float, int | None], str]:
    def label(value: float, _: int | None) -> str:
        low, high = axes.get_xlim()
        is_shown = high / low < 30 and f"{value:e}"[0] in "25"
        return _tick(value) if is_shown else ""

    return label


def _tick(value: float) -> str:
    return f"{value:g} s" if value >= 1.0 else f"{1e3 * value:g} ms"


def down_the_side(axes: Axes, names: list[str]) -> None:
    """Name the rows of a horizontal chart, the first on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")


def target_line(axes: Axes, target: float, *, along: str) -> None:
    """Mark the attainment that was asked for."""
    draw = axes.axvline if along == "x" else axes.axhline
    draw(target, color=INK, linewidth=1.0, linestyle=(0, (4, 3)), zorder=3, label="target")


def shortened(text: str, size: int = 38) -> str:
    """A text that fits a label."""
    return text if len(text) <= size else text[: size - 1] + "…"
