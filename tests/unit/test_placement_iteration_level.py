"""The iteration-level simulator: the engine's own decisions, closed forms, and all accounted."""

from dataclasses import replace

import numpy as np
import pytest

from fabric.core.errors import ConfigError
from fabric.core.plan import ParallelConfig
from fabric.core.profile import Profile
from fabric.core.request import Objectives
from fabric.scheduler.output import SchedulerOutput
from fabric.scheduler.policies import PolicyConfig
from fabric.scheduler.settings import ResidencyConfig, SchedulerConfig
from placement.simulator.iteration_level import (
    RouterModel,
    SimulatedGroup,
    simulate_fabric,
    simulate_in_detail,
)
from placement.workload.trace import Trace
from tests.unit.simulated_world import (
    MIB,
    PROFILE,
    cost,
    group,
    poisson,
    scheduled_by_engine,
    trace,
)


def scheduled_by_simulator(
    simulated: SimulatedGroup, requests: Trace
) -> list[tuple[float, SchedulerOutput]]:
    seen: list[tuple[float, SchedulerOutput]] = []
    simulate_in_detail(
        (simulated,),
        requests,
        RouterModel(),
        observe=lambda output, now: seen.append((now, output)),
    )
    return seen


@pytest.mark.parametrize(
    ("policy", "num_stages", "memory_mib"),
    [("fcfs", 1, 150), ("mlfq", 3, 150), ("srw", 1, 196), ("mlfq", 3, 196)],
)
@pytest.mark.parametrize("runs_ahead", [False, True])
def test_the_engine_schedules_the_same_iterations_at_the_same_times(
    policy, num_stages, memory_mib, runs_ahead
):
    """Also where KV is parked and dropped, and, in the smaller memory, models take turns."""
    costs = [
        cost(num_stages=num_stages, overhead_s=0.001 * i, load_s=0.05, fetch_s=0.1)
        for i in range(3)
    ]
    config = SchedulerConfig(
        max_num_seqs=8,
        max_num_batched_tokens=128,
        policy=PolicyConfig(policy),
        residency=ResidencyConfig(host_bytes=2048 * MIB),
        async_scheduling=runs_ahead,
    )
    simulated = group(costs, memory_mib, scheduler=config, host_bytes=64 * MIB)
    requests = poisson(12.0, 45, num_models=3)
    found = scheduled_by_simulator(simulated, requests)
    assert len(found) > 300
    assert found == scheduled_by_engine(simulated, requests)


def test_one_server_takes_as_long_as_a_queue_with_deterministic_service():
    service_s = PROFILE.prefill_s(100)
    rate_per_s = 0.6 / service_s
    requests = trace(poisson(rate_per_s, 2000).arrivals_s, 100, 1)
    config = SchedulerConfig(max_num_seqs=1)
    outcome = simulate_fabric((group([cost()], scheduler=config),), requests, RouterModel())
    ends_s, free_s = [], 0.0
    for arrival_s in requests.arrivals_s:
        free_s = max(free_s, arrival_s) + service_s
        ends_s.append(free_s - arrival_s)
    assert outcome.e2e_s == pytest.approx(np.array(ends_s))
    expected_s = service_s + rate_per_s * service_s**2 / (2 - 2 * rate_per_s * service_s)
    assert outcome.e2e_s.mean() == pytest.approx(expected_s, rel=0.05)


@pytest.mark.parametrize("shares", [(0.3, 0.7), (0.7, 0.3)])
def test_a_pipeline_takes_as_long_as_its_slowest_stage_makes_wait(shares):
    """Source: AlpaServe (Li et al., OSDI 2023), section 3.4."""
    service_s = PROFILE.prefill_s(100)
    slowest_s = max(shares) * service_s
    rate_per_s = 0.6 / slowest_s
    requests = trace(poisson(rate_per_s, 2000, seed=1).arrivals_s, 100, 1)
    config = SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=100)
    stages = replace(cost(num_stages=2), stage_shares=shares)
    outcome = simulate_fabric((group([stages], scheduler=config),), requests, RouterModel())
    expected_s = service_s + rate_per_s * slowest_s**2 / (2 - 2 * rate_per_s * slowest_s)
    assert outcome.e2e_s.mean() == pytest.approx(expected_s, rel=0.05)


def test_flat_out_decoding_gives_a_batch_of_tokens_in_each_iteration():
    config = SchedulerConfig(max_num_seqs=16)
    profile = Profile(((1, 0.01), (2, 0.02)), ((1, 1, 0.01), (16, 1, 0.025)))
    simulated = group([cost(profile, overhead_s=0.001)], scheduler=config)
    detail = simulate_in_detail((simulated,), trace([0.0] * 64, 1, 20), RouterModel())
    assert detail.span_s == pytest.approx(4 * 20 * (0.025 + 0.001))
    assert detail.utilisation(0) == pytest.approx(0.025 / 0.026)
    assert detail.groups[0].num_iterations == 4 * 20


def test_an_engine_that_runs_ahead_hides_what_it_takes_itself():
    config = SchedulerConfig(max_num_seqs=16, async_scheduling=True)
    profile = Profile(((1, 0.01), (2, 0.02)), ((1, 1, 0.01), (16, 1, 0.025)))
    simulated = group([cost(profile, overhead_s=0.001)], scheduler=config)
    detail = simulate_in_detail((simulated,), trace([0.0] * 16, 1, 20), RouterModel())
    assert detail.span_s == pytest.approx(20 * 0.025 + 0.001)
    assert detail.groups[0].num_iterations == 20


def test_all_requests_get_all_tokens_when_memory_for_kv_runs_out():
    requests = trace(np.arange(40) * 0.01, 40, 120)
    detail = simulate_in_detail((group([cost()], 66),), requests, RouterModel())
    assert detail.groups[0].num_preemptions > 0
    assert detail.groups[0].peak_slabs == detail.groups[0].num_slabs
    assert detail.outcome.num_tokens.tolist() == [120] * 40
    assert np.isfinite(detail.outcome.e2e_s).all()


def test_prompts_longer_than_an_iteration_are_computed_in_chunks():
    config = SchedulerConfig(max_num_batched_tokens=256)
    detail = simulate_in_detail(
        (group([cost()], scheduler=config),), trace([0.0], 1024, 1), RouterModel()
    )
    assert detail.groups[0].num_iterations == 4
    # A longer prompt takes less a token by this profile; its chunks are iterations of their own.
    assert detail.outcome.ttft_s[0] == pytest.approx(4 * PROFILE.prefill_s(256))


def test_equal_seeds_give_equal_outcomes():
    groups = [group([cost()], name=name) for name in ("a", "b", "c")]
    requests, router = poisson(40.0, 200), RouterModel(routing="power_of_two")
    first, second, other = (simulate_fabric(groups, requests, router, seed) for seed in (1, 1, 2))
    assert first.e2e_s.tolist() == second.e2e_s.tolist()
    assert first.groups.tolist() == second.groups.tolist() != other.groups.tolist()


def test_a_request_goes_where_its_model_is():
    groups = [group([cost()], name="a"), group([cost(), cost()], name="b")]
    requests = poisson(10.0, 60, num_models=2)
    outcome = simulate_fabric(groups, requests, RouterModel(routing="round_robin"))
    assert set(outcome.groups[requests.models == 1]) == {1}
    assert set(outcome.groups[requests.models == 0]) == {0, 1}


def test_the_router_predicts_that_a_faster_group_finishes_first():
    slow = replace(
        PROFILE,
        prefill=tuple((n, 10 * s) for n, s in PROFILE.prefill),
        decode=tuple((n, c, 10 * s) for n, c, s in PROFILE.decode),
    )
    groups = [group([cost(slow)], name="a"), group([cost()], name="b")]
    outcome = simulate_fabric(groups, poisson(20.0, 200), RouterModel())
    assert (outcome.groups == 1).mean() > 0.9


def test_requests_that_would_be_late_are_refused_if_that_is_asked_for():
    simulated = group([cost()], scheduler=SchedulerConfig(max_num_seqs=2))
    requests = trace(np.arange(100) * 0.05, 100, 20)
    objectives = (Objectives(ttft_s=0.1),)
    served = simulate_fabric((simulated,), requests, RouterModel(objectives=objectives))
    refusing = RouterModel(objectives=objectives, refuse_if_late=True)
    outcome = simulate_fabric((simulated,), requests, refusing)
    is_refused = outcome.groups == -1
    assert (served.groups == 0).all()
    assert 0 < is_refused.sum() < 100
    assert np.isnan(outcome.ttft_s[is_refused]).all()
    assert outcome.attainment(objectives) > served.attainment(objectives)


def test_a_full_queue_and_prompts_that_are_too_long_are_refused():
    config = SchedulerConfig(max_num_seqs=1, max_num_waiting=2)
    requests = trace([0.0, 1.0, 1.001, 1.002, 1.003], np.array([3000, 9, 9, 9, 9]), 20)
    outcome = simulate_fabric((group([cost()], scheduler=config),), requests, RouterModel())
    assert outcome.groups.tolist() == [-1, 0, 0, 0, -1]
    assert outcome.num_tokens.tolist() == [0, 20, 20, 20, 0]


def test_weights_are_fetched_and_loaded_for_the_first_request():
    config = SchedulerConfig(residency=ResidencyConfig(host_bytes=512 * MIB))
    simulated = group([cost(load_s=0.5, fetch_s=2.0)], scheduler=config)
    share = replace(simulated.models[0].share, starts="cold")
    simulated = replace(simulated, models=(replace(simulated.models[0], share=share),))
    detail = simulate_in_detail((simulated,), trace([1.0, 9.0], 100, 1), RouterModel())
    warm_s = PROFILE.prefill_s(100)
    # The last layers' share of the first iteration waits for the last weights.
    assert detail.outcome.ttft_s[0] == pytest.approx(2.5 + 0.1 * warm_s)
    assert detail.outcome.ttft_s[1] == pytest.approx(warm_s)
    assert detail.groups[0].num_loads == 1


def test_weights_that_nobody_uses_leave_and_come_back():
    config = SchedulerConfig(residency=ResidencyConfig(idle_s=5.0, host_bytes=512 * MIB))
    simulated = group([cost(load_s=0.5)], scheduler=config)
    detail = simulate_in_detail((simulated,), trace([0.0, 4.0, 30.0], 100, 1), RouterModel())
    assert detail.groups[0].num_loads == 1
    assert detail.outcome.ttft_s[2] > 0.5 > detail.outcome.ttft_s[1]


def test_the_routers_own_time_comes_before_each_first_token():
    requests = trace([0.0, 5.0], 100, 5)
    plain, later = (
        simulate_fabric((group([cost()]),), requests, RouterModel(request_s=s)) for s in (0.0, 0.25)
    )
    assert later.ttft_s == pytest.approx(plain.ttft_s + 0.25)
    assert later.tpot_s == pytest.approx(plain.tpot_s)


@pytest.mark.parametrize(
    ("groups", "router", "message"),
    [
        ([group([cost()], 60)], RouterModel(), "memory is"),
        ([group([cost()]), group([cost()])], RouterModel(), "names that differ"),
        ([group([cost()])], RouterModel(objectives=(Objectives(),) * 3), "objectives are 3"),
        (
            [replace(group([cost()] * 2), models=group([cost()] * 2).models[1:])],
            RouterModel(),
            "m0",
        ),
    ],
)
def test_what_can_not_be_simulated_is_refused(groups, router, message):
    with pytest.raises(ConfigError, match=message):
        simulate_fabric(groups, trace([0.0]), router)


def test_kv_is_parked_only_where_copies_have_a_time():
    requests = trace(np.arange(40) * 0.01, 40, 120)
    config = SchedulerConfig(policy=PolicyConfig("mlfq"), preemption="swap")
    unknown = replace(PROFILE, copies=())
    outputs: dict[str, int] = {}
    for name, profile in (("known", PROFILE), ("unknown", unknown)):
        simulated = group([cost(profile)], 66, scheduler=config, host_bytes=64 * MIB)
        detail = simulate_in_detail((simulated,), requests, RouterModel())
        assert detail.outcome.num_tokens.tolist() == [120] * 40
        outputs[name] = detail.groups[0].num_tokens
    # Tokens that are dropped are computed again.
    assert outputs["known"] == 40 * 159 < outputs["unknown"]


def test_a_cost_of_other_stages_than_the_groups_is_refused():
    with pytest.raises(ConfigError, match="the group has 1"):
        replace(group([cost(num_stages=2)]), parallel=ParallelConfig())
