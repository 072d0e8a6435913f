"""Draws the ways to cut a model that no other way beats."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from placement.cli.plots.style import MARKERS, new_figure
from placement.cli.reports import FrontReport

GIB = 2**30


def draw_front(report: FrontReport) -> Figure:
    """Rate over latency; colours are bytes of the fullest device, marks numbers of stages."""
    figure = new_figure(7.5, 4.6)
    axes = figure.subplots()
    sizes = [cut.bytes / GIB for cut in report.cuts]
    for index, num_stages in enumerate(sorted({len(cut.stages) for cut in report.cuts})):
        cuts = [cut for cut in report.cuts if len(cut.stages) == num_stages]
        points = axes.scatter(
            [1e3 * cut.latency_s for cut in cuts],
            [1.0 / cut.bottleneck_s for cut in cuts],
            c=[cut.bytes / GIB for cut in cuts],
            vmin=min(sizes),
            vmax=max(sizes),
            cmap="viridis",
            marker=MARKERS[index % len(MARKERS)],
            s=48,
            label=f"{num_stages} stage{'s' * (num_stages > 1)}",
        )
    if report.cuts:
        _name_choices(axes, report)
        figure.colorbar(points, ax=axes, label="GiB on the fullest device")
        axes.legend(loc="lower right")
        axes.margins(0.16, 0.14)
    axes.set(
        title=f"{report.model} on {report.num_devices} x {report.device}",
        xlabel="latency: sum of the stages, ms",
        ylabel="rate: 1 / slowest stage, per second",
    )
    return figure


def _name_choices(axes: Axes, report: FrontReport) -> None:
    names: dict[int, list[str]] = {}
    for name, index in report.choices:
        names.setdefault(index, []).append(name.replace("_", " "))
    for index, words in names.items():
        cut = report.cuts[index]
        axes.annotate(
            "\n".join(words),
            (1e3 * cut.latency_s, 1.0 / cut.bottleneck_s),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
