"""Draws placement policies beside each other: at one point, and over what is swept."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from placement.cli import units
from placement.cli.plots.style import (
    BLUE,
    INK,
    MARKERS,
    PALETTE,
    as_shares,
    down_the_side,
    new_figure,
    share_floor,
    target_line,
)
from placement.planning.report import PolicyRow, Sweep

LABELS = {
    "devices": "devices",
    "rate": "rate, times the input's",
    "cv": "burstiness: CV of the gaps between requests",
    "slo": "objectives, times the input's",
}


def draw_sweeps(sweeps: tuple[Sweep, ...], target: float) -> Figure:
    """Attainment over each quantity, a line for each policy.

    Source: AlpaServe (Li et al., OSDI 2023), figure 12, has the same four panels.
    """
    num_columns = 2 if len(sweeps) > 1 else 1
    num_rows = -(-len(sweeps) // num_columns)
    figure = new_figure(5.2 * num_columns, 0.5 + 3.1 * num_rows)
    panels = figure.subplots(num_rows, num_columns, squeeze=False).flatten()
    shares = [share for sweep in sweeps for point in sweep.points for _, share in point.attainment]
    floor = share_floor(shares, steps=5)
    for axes, sweep in zip(panels, sweeps, strict=False):
        _draw_sweep(axes, sweep, target)
        axes.set_ylim(bottom=floor)
    for axes in panels[len(sweeps) :]:
        axes.set_axis_off()
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper left", ncols=len(names))
    return figure


def _draw_sweep(axes: Axes, sweep: Sweep, target: float) -> None:
    values = [point.value for point in sweep.points]
    names = dict.fromkeys(name for point in sweep.points for name, _ in point.attainment)
    for index, name in enumerate(names):
        shares = [dict(point.attainment).get(name, float("nan")) for point in sweep.points]
        axes.plot(
            values,
            shares,
            color=PALETTE[index % len(PALETTE)],
            marker=MARKERS[index % len(MARKERS)],
            label=name,
        )
    as_shares(axes, along="y")
    target_line(axes, target, along="y")
    axes.set_xlim(left=0.0)
    axes.set(xlabel=LABELS.get(sweep.quantity, sweep.quantity), ylabel="attainment")


def draw_policies(rows: tuple[PolicyRow, ...], target: float) -> Figure:
    """Each policy's held-out attainment with its confidence interval, and what training said."""
    figure = new_figure(8.0, 1.6 + 0.45 * len(rows))
    axes = figure.subplots()
    for row, policy in enumerate(rows):
        held_out = policy.held_out
        axes.barh(row, held_out.mean, color=BLUE, height=0.6, label="held out" if not row else "")
        if held_out.num_seeds > 1:
            axes.plot([held_out.low, held_out.high], [row, row], color=INK, linewidth=1.4)
        axes.plot(
            policy.training, row, "D", color="white", markeredgecolor=INK, markersize=5,
            label="" if row else "training",
        )  # fmt: skip
        axes.annotate(
            units.percent(held_out.mean),
            (0, row),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color="white",
        )
    down_the_side(axes, [policy.policy for policy in rows])
    as_shares(axes, along="x")
    target_line(axes, target, along="x")
    axes.set(xlabel="attainment (line: 95 % confidence of the mean)")
    figure.legend(loc="outside upper left", ncols=2)
    return figure
