"""Draws the ways to cut a model that no other way beats."""

from matplotlib.figure import Figure

from placement.cli import units
from placement.cli.plots.style import MARKERS, new_figure
from placement.cli.reports import Cut, FrontReport

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
        chosen = report.cuts[report.chosen]
        axes.annotate(
            describe(chosen),
            (1e3 * chosen.latency_s, 1.0 / chosen.bottleneck_s),
            xytext=(0, 12),
            textcoords="offset points",
            ha="center",
            fontweight="bold",
        )
        figure.colorbar(points, ax=axes, label="GiB on the fullest device")
        axes.legend(loc="lower right")
        axes.margins(0.16, 0.14)
    axes.set(
        title=f"{report.model} on {report.num_devices} x {report.device}",
        xlabel="latency: sum of the stages, ms",
        ylabel="rate: 1 / slowest stage, per second",
    )
    return figure


def describe(cut: Cut) -> str:
    """A cut in a few words: the meshes of its stages, and how slow it is."""
    meshes = " + ".join(f"{stage.nodes}x{stage.devices}" for stage in cut.stages)
    return f"{meshes}: {units.seconds(cut.latency_s)}"
