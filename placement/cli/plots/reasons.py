"""Draws which constraint binds, and what would change if something else did."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from placement.cli import units
from placement.cli.plots.style import (
    BLUE,
    GREEN,
    ORANGE,
    PINK,
    RED,
    SKY,
    as_shares,
    down_the_side,
    new_figure,
    share_floor,
)
from placement.planning.report import Binding, ExplainReport, WhatIf

COLOURS = {
    "unloaded latency": PINK,
    "memory": BLUE,
    "compute": RED,
    "burst": ORANGE,
    "convoy": SKY,
    "none": GREEN,
}


def draw_reasons(report: ExplainReport) -> Figure:
    """What makes requests miss, by subject; attainment before and after each what-if."""
    subjects = list(dict.fromkeys(binding.subject for binding in report.bindings))
    heights = (len(subjects) + 1, len(report.what_ifs) + 1)
    figure = new_figure(9.0, 2.0 + 0.42 * sum(heights))
    if not report.what_ifs:
        _draw_bindings(figure.subplots(), report.bindings, subjects)
        return figure
    upper, lower = figure.subplots(2, 1, height_ratios=heights)
    _draw_bindings(upper, report.bindings, subjects)
    _draw_what_ifs(lower, report.what_ifs)
    return figure


def _draw_bindings(axes: Axes, bindings: tuple[Binding, ...], subjects: list[str]) -> None:
    ends = dict.fromkeys(subjects, 0.0)
    for name, colour in COLOURS.items():
        for binding in bindings:
            if binding.name == name:
                row, start = subjects.index(binding.subject), ends[binding.subject]
                axes.barh(row, binding.share, left=start, color=colour, height=0.6)
                ends[binding.subject] += binding.share
    for row, subject in enumerate(subjects):
        axes.annotate(
            units.percent(ends[subject]),
            (ends[subject], row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    down_the_side(axes, subjects)
    as_shares(axes, along="x")
    # Shares are small where things go well.
    axes.set_xlim(0.0, max(0.05, 1.15 * max(ends.values(), default=1.0)))
    axes.set(title="Why requests miss", xlabel="share of requests")
    named = {binding.name for binding in bindings if binding.share}
    patches = [Patch(color=colour, label=name) for name, colour in COLOURS.items() if name in named]
    axes.legend(handles=patches, loc="upper right", ncols=5, bbox_to_anchor=(1.0, 1.2))


def _draw_what_ifs(axes: Axes, what_ifs: tuple[WhatIf, ...]) -> None:
    for row, what_if in enumerate(what_ifs):
        colour = GREEN if what_if.attainment >= what_if.before else RED
        axes.plot([what_if.before, what_if.attainment], [row, row], color=colour, linewidth=3)
        axes.plot(what_if.before, row, "o", color="white", markeredgecolor=colour, markersize=7)
        axes.plot(what_if.attainment, row, "o", color=colour, markersize=7)
        axes.annotate(
            units.percent(what_if.attainment),
            (what_if.attainment, row),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
    down_the_side(axes, [what_if.change for what_if in what_ifs])
    as_shares(axes, along="x")
    shares = [share for what_if in what_ifs for share in (what_if.before, what_if.attainment)]
    axes.set_xlim(share_floor(shares, steps=10), 1.01)
    axes.set(title="What if", xlabel="attainment (open: now)")
