"""Replays requests on a placement, millions a second: the score of every search."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

import numpy as np

from fabric.core.errors import ConfigError
from placement import _native
from placement.groups import Group
from placement.simulator.service import KindRequests, ServiceTimes
from placement.workload.trace import FloatArray, IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """When each request ends (nan if it is refused) and on which group (-1 if it is refused)."""

    finish_s: FloatArray
    groups: IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Score:
    """What came of the counted requests.

    ``num_requests`` and ``num_met`` are of each model, ``num_served`` of each group;
    ``latency_s`` is the sum over served requests.
    """

    num_requests: IntArray
    num_met: IntArray
    num_served: IntArray
    latency_s: float

    @property
    def attainment(self) -> float:
        """The share of all counted requests that met their objective; 1 if there are none."""
        num_requests = int(self.num_requests.sum())
        return int(self.num_met.sum()) / num_requests if num_requests else 1.0

    @property
    def mean_latency_s(self) -> float:
        """Mean over the served requests; 0 if there are none."""
        return self.latency_s / max(1, int(self.num_met.sum()))


class RequestSimulator:
    """Device groups that serve first come, first served, and refuse at arrival what would be late.

    A request goes to the group, of those that host its model, whose last stage is free first (the
    first such group in order if several are), and there through the stages one after another. If
    it would end later than its objective it is refused and occupies nothing; no other group is
    tried.

    Args:
        requests: What arrives.
        times: How long it takes.
        num_uncounted: Requests at either end that load the groups but are in no score.

    Raises:
        ConfigError: The arrays' shapes or numbers don't fit each other.

    Source: AlpaServe (Li et al., OSDI 2023), section 5: its simulator.
    """

    def __init__(self, requests: KindRequests, times: ServiceTimes, num_uncounted: int = 0) -> None:
        check_requests(requests)
        check_times(times, len(requests.kind_models), requests.num_models)
        num_requests = len(requests.arrivals_s)
        if not 0 <= 2 * num_uncounted <= num_requests:
            raise ConfigError(f"num_uncounted is {num_uncounted} at each end of {num_requests}")
        self._num_configs = len(times.num_stages)
        self._num_models = requests.num_models
        counted = requests.kinds[num_uncounted : num_requests - num_uncounted]
        self.num_requests = np.bincount(
            requests.kind_models[counted], minlength=requests.num_models
        ).astype(np.int32)
        self.problem = _native.Problem(
            arrivals_s=requests.arrivals_s,
            kinds=requests.kinds,
            kind_models=requests.kind_models,
            slo_s=requests.slo_s,
            num_models=requests.num_models,
            stages_s=times.stages_s,
            num_stages=times.num_stages,
            delay_s=times.delay_s,
            overhead_s=times.overhead_s,
            num_uncounted=num_uncounted,
        )

    def run(self, groups: Sequence[Group]) -> Served:
        """Every request's end and group."""
        return Served(*_native.serve(self.problem, *self._flat([groups])))

    def score(self, groups: Sequence[Group]) -> Score:
        """What came of the counted requests."""
        return self.scores([groups], num_threads=1)[0]

    def scores(
        self, candidates: Sequence[Sequence[Group]], num_threads: int | None = None
    ) -> list[Score]:
        """Scores of many candidates; on all of this process's processors if not told how many."""
        threads = num_threads or len(os.sched_getaffinity(0))
        scores = _native.score_all(self.problem, *self._flat(candidates), threads)
        return [Score(self.num_requests, *one) for one in scores]

    def _flat(
        self, candidates: Sequence[Sequence[Group]]
    ) -> tuple[IntArray, IntArray, IntArray, IntArray]:
        groups = list(chain.from_iterable(candidates))
        configs = int_array(group.config for group in groups)
        models = int_array(chain.from_iterable(group.models for group in groups))
        check_indices("a group's configuration", configs, self._num_configs)
        check_indices("a group's model", models, self._num_models)
        starts = int_array(accumulate(map(len, candidates), initial=0))
        offsets = int_array(accumulate((len(group.models) for group in groups), initial=0))
        return starts, configs, offsets, models


def check_requests(requests: KindRequests) -> None:
    """Raise ConfigError unless arrivals ascend and kinds and models are known."""
    if len(requests.arrivals_s) != len(requests.kinds):
        raise ConfigError(
            f"{len(requests.arrivals_s)} arrivals but {len(requests.kinds)} kinds of requests"
        )
    if len(requests.kind_models) != len(requests.slo_s):
        raise ConfigError(f"{len(requests.kind_models)} kinds but {len(requests.slo_s)} objectives")
    if not np.all(np.diff(requests.arrivals_s) >= 0):
        raise ConfigError("arrivals_s must ascend")
    check_indices("a request's kind", requests.kinds, len(requests.kind_models))
    check_indices("a kind's model", requests.kind_models, requests.num_models)


def check_times(times: ServiceTimes, num_kinds: int, num_models: int) -> None:
    """Raise ConfigError unless all arrays are of one number of configurations, kinds, models."""
    num_configs, max_stages = len(times.num_stages), times.stages_s.shape[-1]
    shapes = {
        "stages_s": (num_configs, num_kinds, max_stages),
        "delay_s": (num_configs, num_kinds),
        "model_bytes": (num_configs, num_models),
        "budget_bytes": (num_configs,),
        "num_devices": (num_configs,),
    }
    for name, shape in shapes.items():
        if getattr(times, name).shape != shape:
            raise ConfigError(f"{name} is of shape {getattr(times, name).shape}, not {shape}")
    limit = min(max_stages, _native.MAX_STAGES)
    if num_configs and not 1 <= times.num_stages.min() <= times.num_stages.max() <= limit:
        raise ConfigError(f"num_stages is {times.num_stages.tolist()}; 1 to {limit} is allowed")
    if np.isnan(times.stages_s).any() or (times.stages_s < 0).any():
        raise ConfigError("stages_s must be seconds, at least 0")


def check_indices(what: str, values: IntArray, size: int) -> None:
    """Raise ConfigError if an index is below 0, or ``size`` or more."""
    if len(values) and not 0 <= values.min() <= values.max() < size:
        bad = values[(values < 0) | (values >= size)][0]
        raise ConfigError(f"{what} is {bad}; there are {size}")


def int_array(values: Iterable[int]) -> IntArray:
    """The values as 32-bit integers."""
    return np.fromiter(values, dtype=np.int32)
