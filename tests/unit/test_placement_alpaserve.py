"""AlpaServe's experiments: arrivals, cases, published placements."""

import json
from pathlib import Path

import numpy as np
import pytest

from fabric.core.errors import ConfigError
from fabric.core.plan import ParallelConfig
from placement.alpaserve.cases import Case, case_requests, case_times
from placement.alpaserve.profile import CONFIGS, V100Profile, device_bytes, load_profile
from placement.alpaserve.rows import Row, read_rows, replay_row
from placement.alpaserve.workload import (
    gamma_arrivals,
    merged_arrivals,
    num_edge_requests,
    power_law_rates,
)
from placement.groups import Group


@pytest.fixture(scope="module")
def rows(data_path: Path) -> list[Row]:
    return read_rows(data_path / "alpaserve/golden_rows.jsonl")


@pytest.fixture(scope="module")
def profile(data_path: Path) -> V100Profile:
    return load_profile(data_path / "alpaserve/fitted_v100.json")


@pytest.mark.parametrize(
    ("case", "num_requests"),
    [
        (Case("mixed", 60, 64.0, 4.0, 5.0), 12857),
        (Case("bert", 42, 64.0, 4.0, 5.0), 12960),
        (Case("align-bert2.6b-sim", 24, 40.0, 4.0, 5.0), 8129),
        (Case("mixed", 60, 1.0, 4.0, 5.0), 567),
    ],
)
def test_as_many_requests_arrive_as_were_published(case: Case, num_requests: int):
    rates = power_law_rates(case.num_models, case.rate_per_s)
    arrivals, models = merged_arrivals(rates, case.cv, case.duration_s)
    assert len(arrivals) == len(models) == num_requests
    assert np.all(np.diff(arrivals) >= 0)


def test_arrivals_are_sums_of_one_gap_drawn_after_another():
    generator, expected, now = np.random.RandomState(5), [], 0.0
    while (now := now + generator.gamma(1 / 16, 16 / 2.0)) < 50.0:
        expected.append(now)
    assert gamma_arrivals(2.0, 4.0, 50.0, seed=5).tolist() == expected


def test_rates_fall_with_the_root_of_the_models_number():
    rates = power_law_rates(4, 10.0)
    assert rates.sum() == pytest.approx(10.0)
    assert rates[0] / rates[3] == pytest.approx(2.0)


def test_other_seeds_give_other_requests():
    rates = power_law_rates(3, 10.0)
    assert len(merged_arrivals(rates, 1.0, 50.0, 0)[0]) != len(
        merged_arrivals(rates, 1.0, 50.0, 9)[0]
    )


def test_ten_seconds_of_requests_are_left_out_at_each_end():
    assert num_edge_requests(np.linspace(0.0, 200.0, 401)) == 20
    assert num_edge_requests(np.linspace(0.0, 12.0, 5)) == 2
    assert num_edge_requests(np.array([3.0])) == 0


@pytest.mark.parametrize("bad", [(0.0, 1.0, 1.0), (1.0, 0.0, 1.0), (1.0, 1.0, float("nan"))])
def test_arrivals_need_positive_numbers(bad: tuple[float, float, float]):
    with pytest.raises(ConfigError, match="above 0"):
        gamma_arrivals(*bad, seed=0)


def test_published_placements_replay_to_their_attainment(rows: list[Row], profile: V100Profile):
    for row in rows[::12]:
        tolerance = 0.016 if row.is_real else 0.001
        score = replay_row(row, profile)
        assert score.attainment == pytest.approx(row.expected, abs=tolerance), row


def test_published_placements_fit_in_memory_and_greedy_ones_fill_it(
    rows: list[Row], profile: V100Profile
):
    for row in rows:
        times = case_times(row.case, profile, row.configs)
        for group in row.groups:
            sizes, budget = times.model_bytes[group.config], times.budget_bytes[group.config]
            used = sizes[list(group.models)].sum()
            assert used <= budget
            if row.policy in ("sr-greedy", "mp-greedy-4", "mp-search"):
                others = sorted(set(range(row.case.num_models)) - set(group.models))
                assert not others or used + sizes[others].min() > budget


def test_a_case_has_the_profiles_times_and_objectives():
    numbers = {"L1": 0.4, "op2": 0.25, "pp2S": 0.42, "pp2M": 0.22}
    profile = V100Profile(dict.fromkeys(("bert-6.7b", "bert-2.6b", "bert-1.3b"), numbers))
    case = Case("bert", 4, 8.0, 2.0, slo_scale=5.0, duration_s=20.0)
    configs = (ParallelConfig(1, 1), ParallelConfig(1, 2), ParallelConfig(2, 1))
    requests, times = case_requests(case, profile), case_times(case, profile, configs)
    assert case.types == ("bert-6.7b", "bert-2.6b", "bert-1.3b", "bert-6.7b")
    assert requests.slo_s.tolist() == [2.0] * 4
    assert times.num_stages.tolist() == [1, 1, 2]
    assert times.num_devices.tolist() == [1, 2, 2]
    np.testing.assert_allclose(times.stages_s[:, 3, 0], [0.4036, 0.25225, 0.2036])
    np.testing.assert_allclose(times.stages_s[:, 3, 1], [0, 0, 0.22396], rtol=1e-6)


def test_a_pipelines_slowest_stage_is_its_last():
    profile = V100Profile({"bert-1.3b": {"pp4S": 1.0, "pp4M": 0.4}})
    stages = profile.stages_s("bert-1.3b", ParallelConfig(4, 1))
    np.testing.assert_allclose(stages, np.array([0.2, 0.2, 0.2, 0.4]) * 1.036)


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        ("gpt", ParallelConfig(1, 1), "no L1 of gpt"),
        ("bert-1.3b", ParallelConfig(1, 8), "no op8 of bert-1.3b"),
        ("bert-1.3b", ParallelConfig(2, 2), "no pipelines of cut operators"),
    ],
)
def test_what_the_profile_lacks_is_named(kind: str, config: ParallelConfig, message: str):
    with pytest.raises(ConfigError, match=message):
        V100Profile({"bert-1.3b": {"L1": 0.1}}).stages_s(kind, config)


def test_sizes_of_unknown_models_are_refused():
    with pytest.raises(ConfigError, match="'gpt' is none of"):
        device_bytes("gpt", CONFIGS[0])


def test_sets_of_one_type_are_named_for_it():
    assert Case("align-moe2.4b-real", 2, 8.0, 2.0, 5.0).types == ("moe-2.4b",) * 2


def test_unknown_sets_are_refused():
    with pytest.raises(ConfigError, match="mixed, bert"):
        Case("gpt", 4, 8.0, 2.0, 5.0)


GOOD_ROW: dict[str, object] = {
    "set": "bert",
    "policy": "sr-greedy",
    "exp": "slo",
    "models": 3,
    "devices": 1,
    "rate": 4.0,
    "cv": 2,
    "slo_scale": 5.0,
    "duration": 20.0,
    "requests": 80,
    "configs": [[1, 1, 1]],
    "groups": [[2, 0]],
    "published": 0.5,
    "replayed": None,
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": [[0], [1]]}, "line 2"),
        ({"configs": 3}, "line 2: 3 is not a list of lists"),
        ({"rate": "4"}, "line 2: '4' is not a number"),
        ({"set": "gpt"}, "line 2: models is 'gpt'"),
    ],
)
def test_bad_rows_are_refused_by_their_line(
    tmp_path: Path, changes: dict[str, object], message: str
):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, (GOOD_ROW, {**GOOD_ROW, **changes}))))
    with pytest.raises(ConfigError, match=message):
        read_rows(path)


def test_rows_without_a_replay_expect_what_was_published(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(GOOD_ROW))
    (row,) = read_rows(path)
    assert (row.expected, row.groups) == (0.5, (Group(0, (0, 2)),))


def test_profiles_that_are_no_seconds_are_refused(tmp_path: Path):
    path = tmp_path / "profile.json"
    path.write_text('{"bert-1.3b": {"L1": "fast"}}')
    with pytest.raises(ConfigError, match="must be an object of seconds"):
        load_profile(path)
