"""The request-level simulator against a plain reading of its rules."""

from collections.abc import Sequence

import numpy as np
import pytest

from fabric.core.errors import ConfigError
from placement.groups import Group
from placement.simulator.request_level import RequestSimulator
from placement.simulator.service import KindRequests, ServiceTimes


def make_requests(arrivals: Sequence[float], models: Sequence[int], slo: Sequence[float]):
    return KindRequests(
        arrivals_s=np.array(arrivals, dtype=np.float64),
        kinds=np.array(models, dtype=np.int32),
        kind_models=np.arange(len(slo), dtype=np.int32),
        slo_s=np.array(slo, dtype=np.float32),
        num_models=len(slo),
    )


def make_times(
    stages: Sequence[Sequence[Sequence[float]]], overhead: float = 0.0, delay: float = 0.0
) -> ServiceTimes:
    num_configs, num_kinds = len(stages), len(stages[0])
    num_stages = np.array([len(one[0]) for one in stages], dtype=np.int32)
    array = np.zeros((num_configs, num_kinds, num_stages.max()), dtype=np.float32)
    for config, kinds in enumerate(stages):
        array[config, :, : num_stages[config]] = kinds
    return ServiceTimes(
        stages_s=array,
        num_stages=num_stages,
        delay_s=np.full((num_configs, num_kinds), delay, dtype=np.float32),
        overhead_s=overhead,
        model_bytes=np.zeros((num_configs, num_kinds)),
        budget_bytes=np.zeros(num_configs),
        num_devices=num_stages,
    )


def random_case(seed: int):
    """Up to 4 models on up to 5 groups of up to 4 stages, busy enough to refuse some."""
    rng = np.random.default_rng(seed)
    num_models, num_configs = int(rng.integers(1, 5)), int(rng.integers(1, 4))
    num_kinds = num_models + int(rng.integers(0, 3))
    num_stages = rng.integers(1, 5, num_configs).astype(np.int32)
    stages = rng.uniform(0.01, 0.5, (num_configs, num_kinds, 4)).astype(np.float32)
    stages[rng.random((num_configs, num_kinds)) < 0.1] = np.inf
    requests = KindRequests(
        arrivals_s=np.sort(rng.uniform(0, 20, 200)),
        kinds=rng.integers(0, num_kinds, 200).astype(np.int32),
        kind_models=np.r_[:num_models, rng.integers(0, num_models, num_kinds - num_models)].astype(
            np.int32
        ),
        slo_s=rng.uniform(0.2, 3, num_kinds).astype(np.float32),
        num_models=num_models,
    )
    times = ServiceTimes(
        stages_s=stages,
        num_stages=num_stages,
        delay_s=rng.uniform(0, 0.1, (num_configs, num_kinds)).astype(np.float32),
        overhead_s=0.011,
        model_bytes=np.zeros((num_configs, num_models)),
        budget_bytes=np.zeros(num_configs),
        num_devices=num_stages,
    )
    groups = [
        Group(
            int(rng.integers(num_configs)),
            tuple(model for model in range(num_models) if rng.random() < 0.6),
        )
        for _ in range(rng.integers(0, 6))
    ]
    return requests, times, groups


def plain_replay(requests: KindRequests, times: ServiceTimes, groups: Sequence[Group]):
    """The rules, word for word, on Python's floats."""
    clocks = [[0.0] * int(times.num_stages[group.config]) for group in groups]
    finish, served_by = [], []
    for arrival, kind in zip(requests.arrivals_s.tolist(), requests.kinds.tolist(), strict=True):
        model = requests.kind_models[kind]
        hosts = [
            number
            for number, group in enumerate(groups)
            if model in group.models and np.isfinite(times.stages_s[group.config, kind]).all()
        ]
        end, chosen = float("nan"), -1
        if hosts:
            group = min(hosts, key=lambda number: clocks[number][-1])
            config, now, after = groups[group].config, arrival, []
            for stage, clock in enumerate(clocks[group]):
                now = max(now, clock) + float(times.stages_s[config, kind, stage])
                after.append(now)
            late = now + float(times.delay_s[config, kind]) + times.overhead_s
            if late - arrival <= float(requests.slo_s[kind]):
                end, chosen, clocks[group] = late, group, after
        finish.append(end)
        served_by.append(chosen)
    return np.array(finish), np.array(served_by)


@pytest.mark.parametrize("seed", range(100))
def test_random_cases_agree_with_a_plain_replay_to_the_bit(seed: int):
    requests, times, groups = random_case(seed)
    served = RequestSimulator(requests, times).run(groups)
    finish, served_by = plain_replay(requests, times, groups)
    np.testing.assert_array_equal(served.finish_s, finish)
    np.testing.assert_array_equal(served.groups, served_by)


@pytest.mark.parametrize("num_uncounted", [0, 17, 100])
def test_scores_count_what_was_served_between_the_ends(num_uncounted: int):
    requests, times, groups = random_case(3)
    simulator = RequestSimulator(requests, times, num_uncounted)
    served, score = simulator.run(groups), simulator.score(groups)
    counted = slice(num_uncounted, 200 - num_uncounted)
    models, finish = requests.kind_models[requests.kinds][counted], served.finish_s[counted]
    is_met = np.isfinite(finish)
    num_models = requests.num_models
    assert score.num_requests.tolist() == np.bincount(models, minlength=num_models).tolist()
    assert score.num_met.tolist() == np.bincount(models[is_met], minlength=num_models).tolist()
    groups_met = served.groups[counted][is_met]
    assert score.num_served.tolist() == np.bincount(groups_met, minlength=len(groups)).tolist()
    assert score.latency_s == pytest.approx(
        np.sum(finish[is_met] - requests.arrivals_s[counted][is_met])
    )


def test_candidates_scored_together_score_as_they_do_alone():
    requests, times, groups = random_case(3)
    candidates = [groups[: length % (len(groups) + 1)] for length in range(40)]
    simulator = RequestSimulator(requests, times)
    for candidate, score in zip(
        candidates, simulator.scores(candidates, num_threads=2), strict=True
    ):
        alone = simulator.score(candidate)
        assert score.num_met.tolist() == alone.num_met.tolist()
        assert score.num_served.tolist() == alone.num_served.tolist()
        assert score.latency_s == alone.latency_s


def test_equally_free_groups_are_taken_in_their_order():
    requests = make_requests([0, 0, 0], [0, 0, 0], [9])
    served = RequestSimulator(requests, make_times([[[1.0]]])).run([Group(0, (0,))] * 2)
    assert served.groups.tolist() == [0, 1, 0]


def test_the_last_stage_decides_where_a_request_goes():
    requests = make_requests([0, 0.1, 0.2], [0, 1, 1], [9, 9])
    times = make_times([[[0.1, 1.0], [0.1, 0.1]], [[0.5, 0.1], [0.5, 0.1]]])
    served = RequestSimulator(requests, times).run([Group(0, (0, 1)), Group(1, (1,))])
    assert served.groups.tolist() == [0, 1, 1]


def test_a_refused_request_occupies_nothing():
    requests = make_requests([0, 0.5, 0.5], [0, 1, 0], [2, 0.4])
    times = make_times([[[1.0], [0.3]]])
    served = RequestSimulator(requests, times).run([Group(0, (0, 1))])
    np.testing.assert_array_equal(served.finish_s, [1.0, np.nan, 2.0])
    assert served.groups.tolist() == [0, -1, 0]


def test_a_request_that_ends_just_at_its_objective_is_served():
    times = make_times([[[1.0]]], overhead=0.5)
    served = RequestSimulator(make_requests([0], [0], [1.5]), times).run([Group(0, (0,))])
    assert served.finish_s.tolist() == [1.5]


def test_delay_ends_a_request_later_and_keeps_nobody_waiting():
    requests = make_requests([0, 0], [0, 0], [9])
    served = RequestSimulator(requests, make_times([[[1.0]]], delay=4.0)).run([Group(0, (0,))])
    assert served.finish_s.tolist() == [5.0, 6.0]


def test_nothing_is_hosted_without_groups():
    simulator = RequestSimulator(make_requests([0], [0], [9]), make_times([[[1.0]]]))
    assert simulator.score([]).attainment == 0.0
    assert simulator.scores([]) == []


def test_no_requests_attain_everything():
    simulator = RequestSimulator(make_requests([], [], [9]), make_times([[[1.0]]]))
    score = simulator.score([Group(0, (0,))])
    assert (score.attainment, score.mean_latency_s) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        (make_requests([1, 0], [0, 0], [9]), "arrivals_s must ascend"),
        (make_requests([0], [1], [9]), "kind is 1; there are 1"),
        (make_requests([0], [0, 0], [9]), "1 arrivals but 2"),
        (make_requests([0], [0], [9, 9]), r"shape \(1, 1, 1\), not \(1, 2, 1\)"),
    ],
)
def test_requests_that_make_no_sense_are_refused(requests: KindRequests, message: str):
    with pytest.raises(ConfigError, match=message):
        RequestSimulator(requests, make_times([[[1.0]]]))


@pytest.mark.parametrize("seconds", [-1.0, np.nan])
def test_stages_of_no_positive_time_are_refused(seconds: float):
    with pytest.raises(ConfigError, match="stages_s"):
        RequestSimulator(make_requests([0], [0], [9]), make_times([[[seconds]]]))


def test_more_stages_than_the_simulator_can_hold_are_refused():
    with pytest.raises(ConfigError, match="1 to 64"):
        RequestSimulator(make_requests([0], [0], [9]), make_times([[[1.0] * 65]]))


@pytest.mark.parametrize("group", [Group(1, (0,)), Group(-1, (0,)), Group(0, (1,))])
def test_groups_of_unknown_configurations_or_models_are_refused(group: Group):
    simulator = RequestSimulator(make_requests([0], [0], [9]), make_times([[[1.0]]]))
    with pytest.raises(ConfigError, match="there are 1"):
        simulator.run([group])
