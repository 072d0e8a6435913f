"""Draws what a placement is, and how its models are served."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from placement.cli import units
from placement.cli.plots.style import (
    BLUE,
    FAINT,
    GREEN,
    INK,
    ORANGE,
    RED,
    SKY,
    as_seconds,
    as_shares,
    down_the_side,
    new_figure,
    shortened,
    target_line,
)
from placement.planning.report import GroupReport, ModelReport, ServingReport

GIB = 2**30
QUANTILES = (("p50", "o"), ("p90", "D"), ("p99", "s"))


def draw_serving(report: ServingReport, target: float | None) -> Figure:
    """Groups' memory, attainment, and times to the first and each further token.

    Args:
        report: What is drawn.
        target: The attainment that was asked for, if any.
    """
    num_rows = max(len(report.groups), len(report.models))
    figure = new_figure(11.0, 3.0 + 0.55 * num_rows)
    memory, attainment, ttft, tpot = figure.subplots(2, 2).flat
    _draw_memory(memory, report.groups)
    _draw_attainment(attainment, report, target)
    _draw_times(ttft, report.models, "ttft", "Time to the first token")
    _draw_times(tpot, report.models, "tpot", "Time for each token after it")
    figure.legend(handles=_marks(), loc="outside lower center", ncols=7)
    return figure


def _marks() -> list[Patch | Line2D]:
    bars = (("weights", BLUE), ("KV", SKY), ("allowed", FAINT))
    patches = [Patch(color=colour, label=name) for name, colour in bars]
    points = [
        Line2D([], [], color=ORANGE, marker=marker, linestyle="", label=quantile.upper())
        for quantile, marker in QUANTILES
    ]
    limit = Line2D([], [], color=INK, marker="|", markersize=9, linestyle="", label="objective")
    return [*patches, *points, limit]


def _draw_memory(axes: Axes, groups: tuple[GroupReport, ...]) -> None:
    rows = range(len(groups))
    weights = [group.weight_bytes / GIB for group in groups]
    axes.barh(rows, [group.budget_bytes / GIB for group in groups], color=FAINT, height=0.6)
    axes.barh(rows, weights, color=BLUE, height=0.6)
    kv = [group.kv_bytes / GIB for group in groups]
    axes.barh(rows, kv, left=weights, color=SKY, height=0.6)
    down_the_side(axes, [_group_label(group) for group in groups])
    axes.tick_params(axis="y", labelsize=8)
    axes.set(title="Memory of each group's fullest device", xlabel="GiB")


def _group_label(group: GroupReport) -> str:
    cut = f"pp{group.pipeline} tp{group.tensor}"
    first = f"{group.name}: {group.device} {cut}, {group.utilisation:.0%} busy"
    return f"{first}\n{shortened(', '.join(group.models))}"


def _draw_attainment(axes: Axes, report: ServingReport, target: float | None) -> None:
    models = report.models
    for row, model in enumerate(models):
        if not model.num_requests:
            continue
        is_met = target is None or model.attainment >= target
        axes.barh(row, model.attainment, color=GREEN if is_met else RED, height=0.6)
        is_inside = model.attainment > 0.15
        axes.annotate(
            units.percent(model.attainment),
            (model.attainment, row),
            xytext=(-6 if is_inside else 4, 0),
            textcoords="offset points",
            ha="right" if is_inside else "left",
            va="center",
            color="white" if is_inside else INK,
            fontsize=8,
        )
    down_the_side(axes, [model.model for model in models])
    as_shares(axes, along="x")
    if target is not None:
        target_line(axes, target, along="x")
    whole = f"{units.percent(report.attainment)} of {report.num_requests:,} requests"
    axes.set(title=f"Attainment: {whole}", xlabel="requests whose objectives are met")


def _draw_times(axes: Axes, models: tuple[ModelReport, ...], name: str, title: str) -> None:
    for row, model in enumerate(models):
        times, limit = getattr(model, f"{name}_s"), getattr(model.objectives, f"{name}_s")
        axes.plot([times.p50, times.p99], [row, row], color=ORANGE, linewidth=3, alpha=0.5)
        for quantile, marker in QUANTILES:
            axes.plot(getattr(times, quantile), row, marker, color=ORANGE)
        if limit is not None:
            axes.plot([limit, limit], [row - 0.32, row + 0.32], color=INK, linewidth=1.6)
    down_the_side(axes, [model.model for model in models])
    as_seconds(axes)
    axes.set(title=title)
