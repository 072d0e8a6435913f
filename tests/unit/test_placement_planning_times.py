"""Batches that a planner expects, and how one objective stands for all of a model's."""

from collections.abc import Mapping
from dataclasses import replace
from math import isinf

import numpy as np
import pytest

from fabric.core.plan import ParallelConfig
from fabric.core.profile import Profile
from fabric.core.request import Objectives
from placement.cost.model import ModelCost
from placement.devices import GroupConfig
from placement.groups import Group
from placement.planning.operating import LEAST_AT_ONCE, Demands, kv_bytes, operating_point
from placement.planning.service_times import (
    GroupLimits,
    PlannedModel,
    kind_requests,
    service_times,
)
from placement.simulator.request_level import RequestSimulator
from placement.simulator.service import ServiceTimes
from placement.workload.kinds import RequestKinds, kinds_of
from placement.workload.trace import Trace

# A millisecond for each token of a prompt, and one for each sequence of a step that takes ten.
PROFILE = Profile(((0, 0.0), (1000, 1.0)), ((1, 100, 0.011), (101, 100, 0.111)))
COST = ModelCost(PROFILE, (1.0,), (1000,), (1,))
PROMPT, OUTPUT = 100, 41
BUSY = Demands(rate_per_s=50.0, prompt_tokens=80.0, output_tokens=40.0, max_model_len=200)
ROOM, MOST = 1_000_000, 256
SINGLE = GroupConfig("core", ParallelConfig())


class FixedCosts:
    """Costs by configuration, the same of all models."""

    def __init__(self, costs: Mapping[GroupConfig, ModelCost | None]) -> None:
        self._costs = costs

    def cost(self, model: str, config: GroupConfig) -> ModelCost | None:
        return self._costs[config]


def kinds_at(*arrivals_s: float) -> RequestKinds:
    """Requests of one model that are all alike."""
    size = len(arrivals_s)
    trace = Trace(
        names=("a",),
        duration_s=100.0,
        arrivals_s=np.array(arrivals_s),
        models=np.zeros(size, np.int32),
        prompt_tokens=np.full(size, PROMPT, np.int32),
        output_tokens=np.full(size, OUTPUT, np.int32),
    )
    return kinds_of(trace)


def times_of(
    objectives: Objectives,
    kinds: RequestKinds,
    costs: Mapping[GroupConfig, ModelCost | None] | None = None,
    budget_bytes: int = ROOM,
) -> tuple[PlannedModel, ServiceTimes]:
    """Times of a model whose requests run one at a time."""
    model = PlannedModel("a", Demands(0.01, PROMPT, OUTPUT, 200), objectives)
    known = costs or {SINGLE: COST}
    limits = [GroupLimits(budget_bytes, 1)] * len(known)
    return model, service_times(FixedCosts(known), list(known), [model], kinds, limits)


def is_met_after(wait_s: float, objectives: Objectives) -> bool:
    """Whether a request is in time that waits so long for one before it."""
    _, times = times_of(Objectives(ttft_s=50.0), kinds_at(0.0))
    busy_s = float(times.stages_s[0, 0, 0])
    kinds = kinds_at(0.0, busy_s - wait_s)
    model, times = times_of(objectives, kinds)
    requests = kind_requests([model], kinds)
    served = RequestSimulator(requests, times).run([Group(0, (0,))])
    assert np.isfinite(served.finish_s[0])
    return bool(np.isfinite(served.finish_s[1]))


# A prompt takes 0.1 s, and 40 steps of one sequence take 0.44 s after it.
@pytest.mark.parametrize(
    ("objectives", "longest_wait_s"),
    [
        (Objectives(ttft_s=0.3), 0.2),
        (Objectives(e2e_s=0.64), 0.1),
        (Objectives(ttft_s=0.3, e2e_s=0.64), 0.1),
        (Objectives(ttft_s=0.3, e2e_s=0.84), 0.2),
        (Objectives(ttft_s=0.2, e2e_s=0.2 + 0.44), 0.1),
    ],
)
def test_request_misses_the_one_objective_just_when_it_misses_any(
    objectives: Objectives, longest_wait_s: float
):
    assert is_met_after(longest_wait_s - 0.002, objectives)
    assert not is_met_after(longest_wait_s + 0.002, objectives)


def test_request_without_limits_on_waiting_is_in_time_however_long_it_waits():
    assert is_met_after(0.5, Objectives(tpot_s=1.0))


def test_request_keeps_stages_busy_for_their_shares():
    halves = GroupConfig("core", ParallelConfig(pipeline=2))
    cost = replace(COST, stage_shares=(0.25, 0.75), weight_bytes=(1, 2), kv_token_bytes=(1, 1))
    kinds = kinds_at(0.0)

    _, times = times_of(Objectives(ttft_s=1.0), kinds, {SINGLE: COST, halves: cost})

    whole = times.stages_s[0, 0]
    assert times.num_stages.tolist() == [1, 2]
    assert whole[1] == 0.0
    assert times.stages_s[1, 0] == pytest.approx([0.25 * whole[0], 0.75 * whole[0]])


@pytest.mark.parametrize(
    ("objectives", "cost", "budget_bytes"),
    [
        (Objectives(tpot_s=0.0109), COST, ROOM),
        (Objectives(tpot_s=0.05), None, ROOM),
        # Weights, and KV of all but one token of the longest sequence.
        (Objectives(tpot_s=0.05), COST, 1199),
    ],
    ids=["steps too slow", "can't be cut so", "KV doesn't fit"],
)
def test_model_that_a_group_is_not_for_takes_for_ever_there(
    objectives: Objectives, cost: ModelCost | None, budget_bytes: int
):
    _, times = times_of(objectives, kinds_at(0.0), {SINGLE: cost}, budget_bytes)

    assert isinf(times.stages_s[0, 0, 0])
    assert isinf(times.model_bytes[0, 0])


def test_model_takes_its_weights_and_at_least_the_longest_sequence():
    _, times = times_of(Objectives(tpot_s=0.05), kinds_at(0.0), budget_bytes=1200)

    assert times.model_bytes[0, 0] == 1200


# Steps may take 0.7 of the objective: almost 36 ms are 25 sequences.
@pytest.mark.parametrize(
    ("objectives", "batch"),
    [
        (Objectives(tpot_s=0.051), 25),
        (Objectives(tpot_s=0.012), 1),
        (Objectives(e2e_s=2.04), 25),
        # Without one for the steps, up to twice the least.
        (Objectives(ttft_s=1.0), 12),
    ],
)
def test_batch_is_as_large_as_objectives_let_a_step_take(objectives: Objectives, batch: int):
    point = operating_point(COST, BUSY, objectives, ROOM, MOST)

    assert point is not None
    assert point.batch == batch
    assert point.step_s == pytest.approx(0.010 + 0.001 * batch)


def test_batch_is_no_larger_than_memory_and_scheduler_allow():
    slack = Objectives(tpot_s=10.0)

    # A sequence has 100 tokens in the mean.
    tight = operating_point(COST, BUSY, slack, 550, MOST)
    few = operating_point(COST, BUSY, slack, ROOM, 3)

    assert tight is not None
    assert few is not None
    assert (tight.batch, few.batch) == (5, 3)


def test_batch_is_no_larger_than_a_burst_of_the_requests_that_come():
    rare = replace(BUSY, rate_per_s=0.1)

    point = operating_point(COST, rare, Objectives(tpot_s=10.0), ROOM, MOST)

    assert point is not None
    assert point.batch == LEAST_AT_ONCE


def test_overhead_of_iterations_counts_in_steps():
    cost = replace(COST, overhead_s=0.010)

    point = operating_point(cost, BUSY, Objectives(tpot_s=0.051), ROOM, MOST)

    assert point is not None
    assert point.batch == 15
    assert operating_point(cost, BUSY, Objectives(tpot_s=0.0209), ROOM, MOST) is None


def test_kv_has_room_for_what_runs_and_no_more_than_there_is():
    point = operating_point(COST, BUSY, Objectives(tpot_s=0.05), ROOM, MOST)
    assert point is not None

    needed = kv_bytes(COST, BUSY, point, ROOM)

    service = point.service(COST, 80.0, 40.0)
    assert needed == pytest.approx(2 * 50.0 * service.e2e_s * 100, abs=1)
    assert kv_bytes(COST, BUSY, point, 5000) == 5000
    assert kv_bytes(COST, replace(BUSY, rate_per_s=0.0), point, ROOM) == 200
