"""Predicts what was measured, from profiles and a few requests that are not to be predicted.

Calibrated are three things, as AlpaServe's controller and simulator do it: the seconds that router
and client add to a request and each iteration's overhead beside its profiled time, both from
requests that were alone; and one scale for all of the group's profiled times, from backlogs.

Source: AlpaServe (Li et al., OSDI 2023), section 5; its controller scales profiled latencies by
what warm-up runs took.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from fidelity_measure import Measured
from fidelity_workload import GROUP_BYTES, MAX_MODEL_LEN, scheduler_config

from fabric.core.plan import ModelShare, ParallelConfig
from fabric.core.profile import Profile
from fabric.scheduler.policies import PolicyName
from placement.cost.model import ModelCost
from placement.simulator.iteration_level import (
    Detail,
    RouterModel,
    SimulatedGroup,
    SimulatedModel,
    simulate_in_detail,
)
from placement.simulator.outcome import Outcome
from placement.workload.trace import Trace

BLOCK_SIZE = 16


@dataclass(frozen=True)
class Calibration:
    """What profiles don't say; ``overhead_s`` is of an iteration, ``request_s`` of a request."""

    overhead_s: float
    request_s: float
    scale: float


class Predictor:
    """Simulates one case's device group."""

    def __init__(self, measured: Measured) -> None:
        self._measured = measured
        self.calibration = Calibration(0.0, 0.0, 1.0)
        self.calibration = self._calibrated()

    def predict(
        self, trace: Trace, policy: PolicyName, calibration: Calibration | None = None
    ) -> Detail:
        """Serve a trace by the simulated group."""
        given = calibration or self.calibration
        router = RouterModel(request_s=given.request_s)
        return simulate_in_detail([self._group(policy, given)], trace, router)

    def scale_of(self, backlogs: Sequence[Outcome], policy: PolicyName) -> float:
        """What served backlogs took, by what they are predicted to take: the median."""
        plain = replace(self.calibration, scale=1.0)
        ratios = [
            float(one.e2e_s.max() / self.predict(one.trace, policy, plain).outcome.e2e_s.max())
            for one in backlogs
        ]
        return statistics.median(ratios)

    def _calibrated(self) -> Calibration:
        """From lone requests: a token takes an iteration; all else before the first, the router."""
        plain = Calibration(0.0, 0.0, 1.0)
        overheads_s, requests_s = [], []
        for alone in self._measured.idle:
            expected = self.predict(alone.trace, "fcfs", plain).outcome
            overhead_s = _median(alone.tpot_s) - _median(expected.tpot_s)
            overheads_s.append(overhead_s)
            requests_s.append(_median(alone.ttft_s) - _median(expected.ttft_s) - overhead_s)
        overhead_s = max(0.0, min(overheads_s))
        request_s = max(0.0, min(requests_s))
        self.calibration = Calibration(overhead_s, request_s, 1.0)
        return replace(self.calibration, scale=self.scale_of(self._measured.backlogs, "fcfs"))

    def _group(self, policy: PolicyName, given: Calibration) -> SimulatedGroup:
        measured = self._measured
        models = tuple(
            SimulatedModel(
                ModelShare(name), _cost(profile, weights.weight_bytes, given), MAX_MODEL_LEN
            )
            for name, profile, weights in zip(
                measured.case.models, measured.profiles, measured.report.models, strict=True
            )
        )
        report = measured.report
        return SimulatedGroup(
            "g0",
            ParallelConfig(),
            models,
            memory_bytes=report.num_slabs * report.slab_bytes,
            host_bytes=GROUP_BYTES,
            block_size=BLOCK_SIZE,
            scheduler=scheduler_config(measured.case, policy),
            slab_bytes=report.slab_bytes,
        )


def _cost(profile: Profile, weight_bytes: int, given: Calibration) -> ModelCost:
    return ModelCost(
        scaled(profile, given.scale),
        stage_shares=(1.0,),
        weight_bytes=(weight_bytes,),
        kv_token_bytes=(profile.block_bytes // BLOCK_SIZE,),
        overhead_s=given.overhead_s,
    )


def scaled(profile: Profile, scale: float) -> Profile:
    """The profile of a device on which iterations take so many times as long."""
    return replace(
        profile,
        prefill=tuple((tokens, scale * seconds) for tokens, seconds in profile.prefill),
        decode=tuple(
            (batch, context, scale * seconds) for batch, context, seconds in profile.decode
        ),
    )


def _median(values: np.ndarray) -> float:
    return float(np.nanmedian(values))
