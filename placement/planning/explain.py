"""Why requests miss: one thing after another is made ideal, and what that mends is its share."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from placement.groups import Group
from placement.planning.report import Binding
from placement.simulator.request_level import RequestSimulator
from placement.simulator.service import KindRequests, ServiceTimes
from placement.workload.trace import FloatArray, IntArray

BoolArray = npt.NDArray[np.bool_]
# Requests that keep a group busy for so many times as long as a model's own are a convoy to it.
CONVOY_RATIO = 2.0
_WHY = {
    "unloaded latency": "too slow there even when nothing else runs",
    "compute": "would be late even if requests came evenly, to any group: the devices are too few",
    "convoy": "wait behind requests of other models that take over twice as long",
    "memory": "would be in time if every group had room for the model",
    "burst": "come in bursts that the devices can't take",
}


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A placement and the requests to explain it by."""

    names: tuple[str, ...]
    groups: Sequence[Group]
    requests: KindRequests
    times: ServiceTimes

    @property
    def models(self) -> IntArray:
        """The model of each request."""
        return self.requests.kind_models[self.requests.kinds]

    def num_missed(self) -> IntArray:
        """Requests of each model that miss."""
        served = RequestSimulator(self.requests, self.times).run(self.groups)
        return _count(self.models[np.isnan(served.finish_s)], len(self.names))


def explain_models(case: Case) -> tuple[Binding, ...]:
    """What binds each model, the worst first; ``none`` for models of which no request misses.

    What misses is charged in this order: what would miss if nothing else ran; what would if
    requests came evenly, without those of slow models, and every group had room for all models;
    what would not without those of slow models; what would not if every group had that room. What
    is left is due to bursts.
    """
    count = _count(case.models, len(case.names))
    missed = case.num_missed()
    alone = _count(case.models[_is_hopeless(case)], len(case.names))
    roomy = _with_room(case).num_missed()
    bindings = []
    for model, name in enumerate(case.names):
        if not any(model in group.models for group in case.groups):
            bindings.append(Binding(name, "memory", 1.0, _unplaced(case, model)))
            continue
        if not missed[model]:
            bindings.append(Binding(name, "none", 0.0, "every request is in time"))
            continue
        among_equals = _without_slow(case, model)
        ideal = _evenly(_with_room(among_equals)).num_missed()
        charges = {
            "unloaded latency": int(alone[model]),
            "compute": int(ideal[model] - alone[model]),
            "convoy": int(missed[model] - among_equals.num_missed()[model]),
            "memory": int(missed[model] - roomy[model]),
        }
        bindings += _charged(name, charges, int(missed[model]), int(count[model]))
    return tuple(bindings)


def _charged(name: str, charges: dict[str, int], missed: int, count: int) -> list[Binding]:
    """Each constraint is charged what it explains of what is left by those before it."""
    left, found = missed, list[Binding]()
    for kind, number in (*charges.items(), ("burst", missed)):
        part = min(left, max(0, number))
        left -= part
        if part:
            found.append(Binding(name, kind, part / count, _WHY[kind]))
    found.sort(key=lambda binding: -binding.share)
    return found


def _unplaced(case: Case, model: int) -> str:
    needed = case.times.model_bytes[:, model]
    if not np.isfinite(needed).any():
        return "in no group: on none could it meet its objectives, or hold its weights and KV"
    return f"in no group: needs {needed.min() / 2**30:.1f} GiB of a device, which others have"


def _is_hopeless(case: Case) -> BoolArray:
    """Requests that no group which hosts their model would serve in time if it were empty."""
    times, requests = case.times, case.requests
    alone_s = times.stages_s.sum(axis=2) + times.delay_s + times.overhead_s
    late = np.ones(len(requests.kind_models), np.bool_)
    for group in case.groups:
        hosted = np.isin(requests.kind_models, group.models)
        late &= ~(hosted & (alone_s[group.config] <= requests.slo_s))
    return late[requests.kinds]


def _evenly(case: Case) -> Case:
    """The same with each model's requests at equal distances."""
    requests, models = case.requests, case.models
    arrivals_s = np.empty_like(requests.arrivals_s)
    span_s = float(requests.arrivals_s[-1])
    for model in range(len(case.names)):
        own = np.flatnonzero(models == model)
        # Offsets differ, so that the models don't all come at once.
        offset = (model + 0.5) / len(case.names)
        arrivals_s[own] = (np.arange(len(own)) + offset) * span_s / max(1, len(own))
    order = np.argsort(arrivals_s, kind="stable")
    even = replace(requests, arrivals_s=arrivals_s[order], kinds=requests.kinds[order])
    return replace(case, requests=even)


def _without_slow(case: Case, model: int) -> Case:
    """The same without requests of models that keep the model's groups busy for much longer."""
    busy_s = _mean_busy_s(case, model)
    slow = busy_s > CONVOY_RATIO * busy_s[model]
    kept = ~slow[case.models]
    requests = case.requests
    fewer = replace(requests, arrivals_s=requests.arrivals_s[kept], kinds=requests.kinds[kept])
    return replace(case, requests=fewer)


def _mean_busy_s(case: Case, model: int) -> FloatArray:
    """Seconds that a mean request of each model takes of the first group that hosts the model."""
    group = next(group for group in case.groups if model in group.models)
    busy_s = case.times.stages_s[group.config].max(axis=1)[case.requests.kinds]
    is_known = np.isfinite(busy_s)
    size = len(case.names)
    total = np.bincount(case.models[is_known], busy_s[is_known], minlength=size)
    means: FloatArray = total / np.maximum(1, _count(case.models, size))
    return means


def _with_room(case: Case) -> Case:
    """The same with every model in every group that could host it alone."""
    groups = []
    for group in case.groups:
        can_host = np.isfinite(case.times.model_bytes[group.config])
        groups.append(Group(group.config, tuple(int(model) for model in np.flatnonzero(can_host))))
    return replace(case, groups=groups)


def _count(models: IntArray, size: int) -> IntArray:
    return np.bincount(models, minlength=size).astype(np.int32)
