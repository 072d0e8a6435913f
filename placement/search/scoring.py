"""How good placements are: attainment by simulation, with tie-breaks."""

import os
from collections.abc import Sequence

import numpy as np

from placement import _native
from placement.groups import Group
from placement.simulator.request_level import RequestSimulator, Score
from placement.simulator.service import KindRequests, ServiceTimes
from placement.workload.trace import FloatArray

LATENCY_WEIGHT = 1e-4
REPLICA_WEIGHT = 1e-6
MAX_REMEMBERED = 200_000
# What handling a candidate costs besides replaying it, in requests replayed.
SIMULATION_REQUESTS = 1_000


class Scorer(RequestSimulator):
    """Values of placements: all of a batch see the same requests, and equal islands run once.

    A value is attainment, less the mean latency in units of 10^4 s, and 10^-6 for each replica:
    these only decide between placements that attain as much. With ``hosts_all``, each model that
    no group hosts costs as much as all requests: attainment alone would leave out large models
    that few ask for.

    Source: AlpaServe (Li et al., OSDI 2023), section 4.2, and its code for the tie-breaks.
    """

    def __init__(
        self,
        requests: KindRequests,
        times: ServiceTimes,
        num_threads: int | None = None,
        *,
        hosts_all: bool = False,
    ) -> None:
        super().__init__(requests, times)
        self._hosts_all = hosts_all
        self._num_threads = num_threads or len(os.sched_getaffinity(0))
        self._native = _native.Scorer(self.problem, self._num_threads, MAX_REMEMBERED)
        self._num_all = max(1, len(requests.arrivals_s))
        self._num_detailed = 0
        self._model_requests: list[int] = self.num_requests.tolist()
        self.num_simulations = 0

    @property
    def work(self) -> int:
        """What was asked so far in requests replayed: the same whatever the machine."""
        replayed = self._native.num_replayed + self._num_detailed
        return replayed + SIMULATION_REQUESTS * self.num_simulations

    def details(self, candidates: Sequence[Sequence[Group]]) -> list[Score]:
        """Each candidate's score by model and by group."""
        self.num_simulations += len(candidates)
        for groups in candidates:
            hosted = {model for group in groups for model in group.models}
            self._num_detailed += sum(self._model_requests[model] for model in hosted)
        return self.scores(candidates, self._num_threads)

    def num_missed(self, groups: Sequence[Group]) -> list[int]:
        """Requests of each model that missed their objective."""
        score = self.details([groups])[0]
        return [int(missed) for missed in score.num_requests - score.num_met]

    def values(self, candidates: Sequence[Sequence[Group]]) -> FloatArray:
        """The value of each candidate."""
        self.num_simulations += len(candidates)
        num_met, latency_s = self._native.score(*self._flat(candidates))
        mean_s = latency_s / np.maximum(1, num_met)
        replicas = np.array([sum(len(group.models) for group in one) for one in candidates])
        values = num_met / self._num_all - LATENCY_WEIGHT * mean_s + REPLICA_WEIGHT * replicas
        if self._hosts_all:
            values -= [self._num_left_out(groups) for groups in candidates]
        return values

    def _num_left_out(self, groups: Sequence[Group]) -> int:
        hosted = {model for group in groups for model in group.models}
        return len(self._model_requests) - len(hosted)

    def value(self, groups: Sequence[Group]) -> float:
        """The value of one placement."""
        return float(self.values([groups])[0])
