"""What Prometheus is told of objectives, refusals, and how well predictions hold."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from fabric.router.figures import SloFigures
from fabric.router.routing import Routing


def of_objectives(slo: SloFigures) -> Iterator[Metric]:
    """How requests fared with their objectives, by model; tenants are no labels: clients choose."""
    outcomes = CounterMetricFamily(
        "fabric_slo",
        "Objectives of requests that were met, missed, or refused as sure to be missed",
        labels=("model_name", "objective", "outcome"),
    )
    for key, count in slo.outcomes.items():
        outcomes.add_metric(key, count)
    yield outcomes
    good = CounterMetricFamily(
        "fabric_goodput_requests",
        "Requests with objectives that met all of them",
        labels=("model_name",),
    )
    for model, count in slo.good.items():
        good.add_metric((model,), count)
    yield good


def of_predictions(routing: Routing, groups: tuple[str, ...], now: float) -> Iterator[Metric]:
    """What predictions are multiplied by, by group: times that came out over those predicted."""
    ratio = GaugeMetricFamily(
        "fabric_prediction_ratio", "Time to first token, over that predicted", labels=("group",)
    )
    steps = GaugeMetricFamily(
        "fabric_prediction_step_ratio", "Time a token, over that predicted", labels=("group",)
    )
    for group in groups:
        ratio.add_metric((group,), routing.calibration.ratio(group, now))
        steps.add_metric((group,), routing.step_calibration.ratio(group, now))
    yield from (ratio, steps)
