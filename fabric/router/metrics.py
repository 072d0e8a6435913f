"""What Prometheus is told, under vLLM's names where vLLM has them."""

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from fabric.core.request import LoadReport
from fabric.core.status import GroupState, GroupStatus
from fabric.router.catalog import Catalog
from fabric.router.dispatch import Dispatcher
from fabric.router.figures import OF_REQUESTS
from fabric.router.model_metrics import LABELS, of_models
from fabric.router.slo_metrics import of_objectives, of_predictions
from fabric.telemetry.histogram import Histogram

# The second is the name that vLLM used before, and that older dashboards ask for.
_GAP_NAMES = ("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds")

_GAUGES: tuple[tuple[str, str, Callable[[LoadReport], float]], ...] = (
    ("vllm:num_requests_running", "Requests being computed", lambda load: load.num_running),
    ("vllm:num_requests_waiting", "Requests that wait", lambda load: load.num_waiting),
    ("vllm:num_requests_swapped", "Requests whose KV is off the device or on its way",
     lambda load: load.num_swapped),
    ("vllm:kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1",
     lambda load: 1 - load.num_free_blocks / load.num_blocks if load.num_blocks else 0.0),
    ("fabric_host_blocks", "KV blocks in host memory", lambda load: load.num_host_blocks),
    ("fabric_disk_blocks", "KV blocks on disk", lambda load: load.num_disk_blocks),
    ("fabric_slabs", "Slabs of a device, for weights and KV", lambda load: load.num_slabs),
    ("fabric_slabs_free", "Slabs that nobody has", lambda load: load.num_free_slabs),
    ("fabric_fragmented_bytes", "Bytes of slabs of KV that are in no block in use",
     lambda load: load.fragmented_bytes),
    ("fabric_no_progress_seconds", "Time with work and without progress",
     lambda load: load.stalled_s),
)  # fmt: skip
_COUNTERS: tuple[tuple[str, str, Callable[[LoadReport], float]], ...] = (
    ("vllm:num_preemptions", "Preemptions", lambda load: load.num_preemptions),
    ("vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache",
     lambda load: load.prefix_query_tokens),
    ("vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache",
     lambda load: load.prefix_hit_tokens),
    ("fabric_steps", "Iterations", lambda load: load.num_steps),
    ("fabric_computed_tokens", "Tokens computed, of prompts and outputs",
     lambda load: load.num_tokens),
    ("fabric_swapped_out_bytes", "Bytes of KV copied off the device",
     lambda load: load.swapped_out_bytes),
    ("fabric_swapped_in_bytes", "Bytes of KV copied back", lambda load: load.swapped_in_bytes),
    ("fabric_swap_stall_seconds", "Time in which nothing ran because of copies",
     lambda load: load.stall_s),
    ("fabric_failed_transfers", "Copies that failed", lambda load: load.num_failed_transfers),
    ("fabric_recomputed_tokens", "Tokens computed again after a preemption",
     lambda load: load.num_recomputed_tokens),
    ("fabric_superfluous_tokens", "Tokens computed for sequences that had ended in the meantime",
     lambda load: load.num_superfluous_tokens),
)  # fmt: skip


class RouterMetrics(Collector):
    """Everything that one router knows: its requests, and what its device groups report."""

    def __init__(self, catalog: Catalog, dispatcher: Dispatcher) -> None:
        self._catalog = catalog
        self._dispatcher = dispatcher

    def collect(self) -> Iterator[Metric]:
        """All metrics, as they are now."""
        yield from self._of_router()
        yield from self._of_service()
        yield from self._of_routing()
        # A group that is down has no figures: counters must not seem to fall to 0.
        groups = tuple(map(self._catalog.group_status, self._catalog.group_names))
        yield _readiness(groups)
        alive = [group for group in groups if group.state is not GroupState.DOWN]
        yield from _of_groups(alive)
        yield from of_models(alive)

    def _of_router(self) -> Iterator[Metric]:
        inflight = GaugeMetricFamily("fabric_requests_in_flight", "Requests in the router")
        inflight.add_metric((), self._dispatcher.ledger.num_inflight)
        yield inflight
        ended = CounterMetricFamily(
            "fabric_requests_ended", "Requests that ended, however", labels=("outcome",)
        )
        for outcome, count in self._dispatcher.outcomes.items():
            ended.add_metric((outcome.lower(),), count)
        yield ended

    def _of_routing(self) -> Iterator[Metric]:
        dispatcher = self._dispatcher
        yield from of_objectives(dispatcher.slo)
        yield from of_predictions(dispatcher.routing, self._catalog.group_names, dispatcher.now())

    def _of_service(self) -> Iterator[Metric]:
        labels = (*LABELS, "finished_reason")
        success = CounterMetricFamily("vllm:request_success", "Requests completed", labels=labels)
        prompt = CounterMetricFamily("vllm:prompt_tokens", "Prompt tokens taken in", labels=LABELS)
        output = CounterMetricFamily("vllm:generation_tokens", "Tokens generated", labels=LABELS)
        for key, figures in self._dispatcher.figures.items():
            for reason, count in figures.finished.items():
                success.add_metric((*key, reason), count)
            prompt.add_metric(key, figures.num_prompt_tokens)
            output.add_metric(key, figures.num_output_tokens)
        yield from (success, prompt, output)
        served = self._dispatcher.figures
        for name, text, _, _ in OF_REQUESTS:
            found = {key: figures.of_requests[name] for key, figures in served.items()}
            yield _histogram(name, text, found)
        for name in _GAP_NAMES:
            gaps = {key: figures.gaps for key, figures in served.items()}
            yield _histogram(name, "Time between tokens", gaps)


def _histogram(name: str, text: str, found: Mapping[tuple[str, str], Histogram]) -> Metric:
    family = HistogramMetricFamily(name, text, labels=LABELS)
    for key, histogram in found.items():
        family.add_metric(key, histogram.buckets(), histogram.total)
    return family


def _of_groups(groups: list[GroupStatus]) -> Iterator[Metric]:
    for name, text, value in _GAUGES:
        yield _family(GaugeMetricFamily(name, text, labels=LABELS), groups, value)
    for name, text, value in _COUNTERS:
        yield _family(CounterMetricFamily(name, text, labels=LABELS), groups, value)
    policy = GaugeMetricFamily("fabric_policy", "The policy in force", labels=(*LABELS, "policy"))
    for group in groups:
        policy.add_metric((*_labels(group), group.load.policy), 1)
    yield policy


def _family(
    family: GaugeMetricFamily | CounterMetricFamily,
    groups: list[GroupStatus],
    value: Callable[[LoadReport], float],
) -> Metric:
    for group in groups:
        family.add_metric(_labels(group), value(group.load))
    return family


def _readiness(groups: Iterable[GroupStatus]) -> Metric:
    family = GaugeMetricFamily("fabric_group_ready", "Whether it takes requests", labels=("group",))
    for group in groups:
        family.add_metric((group.name,), group.state is GroupState.READY)
    return family


def _labels(group: GroupStatus) -> tuple[str, str]:
    return ",".join(group.models), group.name
