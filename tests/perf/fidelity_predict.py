"""Predicts what was measured, from profiles and a few requests that are not to be predicted.

Calibrated are three things, as AlpaServe's controller and simulator do it: the seconds that router
and client add to a request and each iteration's overhead beside its profiled time, both from
requests that were alone; and one scale for all of the group's profiled times, from the backlog that
was served right before each run, since a shared machine is not as fast all the time.

Source: AlpaServe (Li et al., OSDI 2023), section 5; its controller scales profiled latencies by
what warm-up runs took.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from fidelity_measure import Measured, Run, makespan_s
from fidelity_workload import GROUP_BYTES, MAX_MODEL_LEN, scheduler_config

from fabric.core.plan import ModelShare, ParallelConfig
from fabric.core.profile import Profile
from fabric.scheduler.policies import PolicyName
from placement.cost.model import ModelCost
from placement.simulator.iteration_level import (
    RouterModel,
    SimulatedGroup,
    SimulatedModel,
    simulate_in_detail,
)
from placement.simulator.outcome import Outcome
from placement.workload.trace import Trace

BLOCK_SIZE = 16
# Longer than anything still runs, shorter than models stay that nobody asks for.
PAUSE_S = 20.0


@dataclass(frozen=True)
class Calibration:
    """What profiles don't say; ``overhead_s`` is of an iteration, ``request_s`` of a request."""

    overhead_s: float
    request_s: float
    scale: float


@dataclass(frozen=True)
class Predicted:
    """What becomes of a run's requests, in how many iterations, and what these take together."""

    outcome: Outcome
    num_iterations: int
    busy_s: float


class Predictor:
    """Simulates one case's device group."""

    def __init__(self, measured: Measured) -> None:
        self._measured = measured
        self.calibration = Calibration(0.0, 0.0, 1.0)
        self.calibration = self._calibrated()

    def predict(self, run: Run) -> Predicted:
        """Serve a run's requests by the simulated group, after those that came right before."""
        history = (run.warm_up.trace,)
        given = replace(self.calibration, scale=self._scale_before(run))
        return self._simulate(run.outcome.trace, run.policy, given, history)

    def _scale_before(self, run: Run) -> float:
        """The scale by the run's own warm-up: a shared machine is not as fast all the time."""
        plain = replace(self.calibration, scale=1.0)
        expected = self._simulate(run.warm_up.trace, run.policy, plain).outcome
        return makespan_s(run.warm_up) / makespan_s(expected)

    def scale_of(self, backlogs: Sequence[Outcome]) -> float:
        """What served backlogs took, by what they are predicted to take: the median."""
        plain = replace(self.calibration, scale=1.0)
        history, ratios = [self._measured.first.trace], []
        for one in backlogs:
            predicted = self._simulate(one.trace, "fcfs", plain, history)
            ratios.append(makespan_s(one) / makespan_s(predicted.outcome))
            history.append(one.trace)
        return statistics.median(ratios)

    def _simulate(
        self, trace: Trace, policy: PolicyName, given: Calibration, history: Sequence[Trace] = ()
    ) -> Predicted:
        """Serve a trace after others, which leave behind who has had how much service."""
        groups, router = [self._group(policy, given)], RouterModel(request_s=given.request_s)
        detail = simulate_in_detail(groups, one_after_the_other([*history, trace]), router)
        figures = detail.groups[0]
        num_iterations, busy_s = figures.num_iterations, figures.busy_s
        if history:
            figures = simulate_in_detail(groups, one_after_the_other(history), router).groups[0]
            num_iterations, busy_s = (
                num_iterations - figures.num_iterations,
                busy_s - figures.busy_s,
            )
        busy_s += given.overhead_s * num_iterations
        return Predicted(last_of(detail.outcome, trace), num_iterations, busy_s)

    def _calibrated(self) -> Calibration:
        """From lone requests of the fastest model, since what isn't the model's is most of theirs.

        A token takes an iteration, and what is left of the time to the first is the router's.
        """
        plain = Calibration(0.0, 0.0, 1.0)
        alone = min(self._measured.idle, key=lambda outcome: _median(outcome.tpot_s))
        expected = self._simulate(alone.trace, "fcfs", plain).outcome
        overhead_s = max(0.0, _median(alone.tpot_s) - _median(expected.tpot_s))
        request_s = _median(alone.ttft_s) - _median(expected.ttft_s) - overhead_s
        self.calibration = Calibration(overhead_s, max(0.0, request_s), 1.0)
        return replace(self.calibration, scale=self.scale_of(self._measured.backlogs))

    def _group(self, policy: PolicyName, given: Calibration) -> SimulatedGroup:
        measured = self._measured
        models = tuple(
            SimulatedModel(
                ModelShare(name),
                _cost(profile, weights.weight_bytes, given),
                MAX_MODEL_LEN,
                believed=profile,
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


def one_after_the_other(traces: Sequence[Trace]) -> Trace:
    """One trace in which each begins when the one before is long over."""
    starts_s = np.cumsum([0.0, *(trace.duration_s + PAUSE_S for trace in traces)])
    arrivals_s = [trace.arrivals_s + start for trace, start in zip(traces, starts_s, strict=False)]
    return Trace(
        traces[0].names,
        float(arrivals_s[-1][-1]),
        np.concatenate(arrivals_s),
        np.concatenate([trace.models for trace in traces]),
        np.concatenate([trace.prompt_tokens for trace in traces]),
        np.concatenate([trace.output_tokens for trace in traces]),
    )


def last_of(outcome: Outcome, trace: Trace) -> Outcome:
    """The part of an outcome that is of its last requests, those of a trace."""
    first = len(outcome.trace) - len(trace)
    return Outcome(
        trace,
        outcome.ttft_s[first:],
        outcome.e2e_s[first:],
        outcome.num_tokens[first:],
        outcome.groups[first:],
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
