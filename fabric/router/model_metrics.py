"""What Prometheus is told of each model in each device group."""

from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from fabric.core.request import ModelLoad
from fabric.core.status import GroupStatus
from fabric.core.weights import WeightState

LABELS = ("model_name", "group")

_GAUGES: tuple[tuple[str, str, Callable[[ModelLoad], float]], ...] = (
    ("fabric_model_pinned", "Whether its weights stay on the device", lambda load: load.pinned),
    ("fabric_model_requests_running", "Its requests being computed",
     lambda load: load.num_running),
    ("fabric_model_requests_waiting", "Its requests that wait", lambda load: load.num_waiting),
    ("fabric_model_queued_tokens", "Prompt tokens that wait to be computed",
     lambda load: load.num_queued_tokens),
    ("fabric_model_kv_slabs", "Slabs that its KV has", lambda load: load.num_slabs),
    ("fabric_model_idle_slabs", "Those of them with nothing but cached prefixes",
     lambda load: load.num_idle_slabs),
    ("fabric_model_weight_bytes", "Bytes of its weights on a device, when they are there",
     lambda load: load.weight_bytes),
    ("fabric_model_load_seconds", "How long its weights took to the device the last time",
     lambda load: load.load_s),
)  # fmt: skip


def of_models(groups: Sequence[GroupStatus]) -> Iterator[Metric]:
    """Where each model's weights are, and what it takes."""
    told = [((load.model, group.name), load) for group in groups for load in group.load.models]
    for name, text, value in _GAUGES:
        family = GaugeMetricFamily(name, text, labels=LABELS)
        for labels, load in told:
            family.add_metric(labels, value(load))
        yield family
    loads = CounterMetricFamily(
        "fabric_model_loads", "How often its weights came to the device", labels=LABELS
    )
    # One series for each state, so that none is left behind when the state changes.
    states = GaugeMetricFamily(
        "fabric_model_state", "1 where its weights are", labels=(*LABELS, "state")
    )
    for labels, load in told:
        loads.add_metric(labels, load.num_loads)
        for state in WeightState:
            states.add_metric((*labels, state), load.state is state)
    yield from (loads, states)
