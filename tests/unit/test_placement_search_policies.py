"""The policies that searches are compared with, and the buckets that some of them use."""

from pathlib import Path

import numpy as np
import pytest

from fabric.core.errors import ConfigError
from placement.alpaserve.cases import Case, case_requests, case_times
from placement.alpaserve.profile import load_profile
from placement.alpaserve.rows import Row, read_rows
from placement.groups import Group
from placement.search.buckets import best_shares, latency_buckets, neighbouring_unions, shares
from placement.search.partitions import equal_partitions
from placement.search.policies import (
    BeamSearch,
    EqualPipelines,
    FastHeuristic,
    OneModelEach,
    Policy,
    RoundRobin,
    SelectiveReplication,
)
from placement.search.policies_buckets import SeparatedSearch
from placement.search.problem import Problem
from placement.search.replanning import replan
from placement.search.scoring import Scorer
from placement.simulator.service import KindRequests, ServiceTimes

ALL: tuple[Policy, ...] = (
    SelectiveReplication(),
    EqualPipelines(2),
    RoundRobin(2),
    OneModelEach(0),
    FastHeuristic(),
    SeparatedSearch(),
    BeamSearch(1),
)


def made(latency_s: tuple[float, ...] = (0.1, 0.1, 0.2, 0.5)) -> Problem:
    """Models of five bytes on four devices of ten; requests every tenth of a second, in turn."""
    num_models = len(latency_s)
    stages = np.array([1, 2, 4], np.int32)
    stages_s = np.zeros((3, num_models, 4), np.float32)
    for config, number in enumerate(stages):
        stages_s[config, :, :number] = np.array(latency_s)[:, None] / number
    requests = KindRequests(
        np.arange(200) * 0.1,
        np.arange(200, dtype=np.int32) % num_models,
        np.arange(num_models, dtype=np.int32),
        np.array(latency_s, np.float32) * 3,
        num_models,
    )
    times = ServiceTimes(
        stages_s,
        stages,
        np.zeros((3, num_models), np.float32),
        0.0,
        5.0 / stages[:, None] * np.ones(num_models),
        np.full(3, 10.0),
        stages,
    )
    return Problem.of_one_type(requests, times, 4)


@pytest.fixture
def published(data_path: Path) -> tuple[list[Row], Problem]:
    """The rows of 42 models on 24 devices, and their problem on a short training workload."""
    profile = load_profile(data_path / "alpaserve/fitted_v100.json")
    case = Case("bert", 42, 64.0, 4.0, 5.0, duration_s=60.0)
    problem = Problem.of_one_type(
        case_requests(case, profile, 1_000), case_times(case, profile), 24
    )
    rows = read_rows(data_path / "alpaserve/golden_rows.jsonl")
    return [row for row in rows if row.case == Case("bert", 42, 64.0, 4.0, 5.0)], problem


@pytest.mark.parametrize("policy", ALL, ids=lambda policy: policy.name)
def test_every_policy_keeps_to_memory_and_devices(policy):
    problem = made()
    groups = policy.place(problem)
    problem.check(groups)
    assert groups


def test_round_robin_places_as_published(published):
    rows, problem = published
    row = next(row for row in rows if row.policy == "mp-round-robin" and row.num_devices == 24)
    hosted = sorted(group.models for group in row.groups)
    assert sorted(group.models for group in RoundRobin(4).place(problem)) == hosted


def test_buckets_separate_the_largest_models_as_published(published):
    _, problem = published
    assert [len(bucket) for bucket in latency_buckets(problem)] == [14, 28]


def test_separated_search_is_no_worse_than_together():
    problem = made()
    scorer = Scorer(problem.requests, problem.times)
    together, apart = FastHeuristic().place(problem), SeparatedSearch().place(problem)
    assert scorer.value(apart) >= scorer.value(together)


def test_selective_replication_uses_single_devices():
    assert {group.config for group in SelectiveReplication().place(made())} == {0}


def test_one_model_each_prefers_those_asked_for_most():
    problem = made((0.1,) * 6)
    problem.requests.kinds[:40] = 5
    groups = OneModelEach(0).place(problem)
    assert len(groups) == 4
    assert Group(0, (5,)) in groups


def test_a_pipeline_that_no_configuration_is_is_refused():
    with pytest.raises(ConfigError, match="pipeline of 3"):
        EqualPipelines(3).place(made())


def test_what_is_left_of_equal_groups_becomes_smaller_pipelines():
    problem = made()
    assert sorted(map(sorted, equal_partitions(problem, [7]))) == [
        [0, 0, 0, 0, 0, 0, 0],
        [0, 1, 1, 1],
        [0, 1, 2],
    ]


def test_replanning_knows_each_window():
    problem = made()
    schedule = replan(problem, problem.requests, window_s=5.0)
    assert schedule.starts_s == (0.0, 5.0, 10.0, 15.0)
    for groups in schedule.placements:
        problem.check(groups)
    assert 0.0 < schedule.attainment <= 1.0


def test_neighbouring_buckets_are_joined_in_every_way():
    unions = list(neighbouring_unions([[0], [1], [2]]))
    assert unions == [[[0], [1], [2]], [[0], [1, 2]], [[0, 1], [2]], [[0, 1, 2]]]


def test_best_shares_are_the_best_of_all():
    def value(bucket: int, share: int) -> float:
        return float((share * (bucket + 2)) ** 0.5 + (share == 3))

    tried = {each: sum(value(i, share) for i, share in enumerate(each)) for each in shares(9, 3)}
    total, found = best_shares(value, 3, 9, 1)
    assert total == pytest.approx(max(tried.values()))
    assert tried[found] == pytest.approx(total)
