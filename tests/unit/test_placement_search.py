"""The search: what it may use, what it scores by, and what it must find."""

import random

import numpy as np
import pytest

from fabric.core.errors import ConfigError
from placement.groups import Group
from placement.search.beam import fill_by_beam
from placement.search.climb import slices
from placement.search.greedy import Vacancy, empty_groups, fill_by_misses
from placement.search.held_out import held_out, summary
from placement.search.moves import Moves
from placement.search.policies import FastHeuristic
from placement.search.problem import Problem
from placement.search.reshape import reshaped
from placement.search.scoring import Scorer
from placement.search.search import Progress, SearchSettings, search
from placement.simulator.request_level import RequestSimulator
from placement.simulator.service import KindRequests, ServiceTimes

SMALL = SearchSettings(max_work=400_000, num_threads=1)


def poisson(rates: list[float], slo_s: list[float], seed: int = 0, duration_s: float = 60.0):
    """Requests of models that are a kind each."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(np.array(rates) * duration_s)
    kinds = np.repeat(np.arange(len(rates), dtype=np.int32), counts)
    arrivals = rng.uniform(0.0, duration_s, len(kinds))
    order = np.argsort(arrivals)
    models = np.arange(len(rates), dtype=np.int32)
    return KindRequests(
        arrivals[order], kinds[order], models, np.array(slo_s, np.float32), len(rates)
    )


def pipelines(latency_s: list[float], sizes: list[float], stages: tuple[int, ...] = (1, 2, 4)):
    """Even pipelines of one device a stage, each with 10 bytes of memory."""
    shape = (len(stages), len(latency_s), max(stages))
    stages_s = np.full(shape, np.inf, np.float32)
    for config, number in enumerate(stages):
        stages_s[config, :, :number] = np.array(latency_s)[:, None] / number
    counts = np.array(stages, np.int32)
    return ServiceTimes(
        stages_s,
        counts,
        np.zeros(shape[:2], np.float32),
        0.0,
        np.array(sizes)[None, :] / counts[:, None],
        np.full(len(stages), 10.0),
        counts,
    )


@pytest.fixture
def problem() -> Problem:
    """Six models on four devices, too large to be everywhere."""
    latency_s = [0.1, 0.1, 0.15, 0.2, 0.3, 0.4]
    requests = poisson([6.0, 3.0, 2.0, 2.0, 1.0, 1.0], [4 * one for one in latency_s])
    times = pipelines(latency_s, [3.0, 3.0, 4.0, 5.0, 6.0, 9.0])
    return Problem.of_one_type(requests, times, 4)


def random_groups(problem: Problem, seed: int) -> tuple[Group, ...]:
    """A placement that many moves from an empty one lead to."""
    rng = random.Random(seed)
    moves = Moves(problem, rng)
    groups = empty_groups(rng.choice([[0, 0, 0, 0], [1, 1], [0, 0, 1], [2]]))
    for _ in range(12):
        groups = rng.choice(moves.propose(groups, [1] * problem.num_models, 4) or [groups])
    return groups


@pytest.mark.parametrize("seed", range(5))
def test_moves_never_exceed_memory_or_devices(problem, seed):
    problem.check(random_groups(problem, seed))


def test_scores_are_those_of_a_full_simulation(problem):
    simulator = RequestSimulator(problem.requests, problem.times)
    scorer = Scorer(problem.requests, problem.times)
    candidates = [random_groups(problem, seed) for seed in range(40)]
    values = scorer.values(candidates)
    for groups, value in zip(candidates, values, strict=True):
        full = simulator.score(groups)
        replicas = sum(len(group.models) for group in groups)
        expected = full.attainment - 1e-4 * full.mean_latency_s + 1e-6 * replicas
        assert value == pytest.approx(expected, abs=1e-11)


def test_a_changed_group_costs_only_the_requests_of_its_island(problem):
    scorer = Scorer(problem.requests, problem.times, num_threads=1)
    scorer.values([(Group(0, (0,)), Group(0, (1,)), Group(1, (3, 4)))])
    before = scorer.work
    scorer.values([(Group(0, (0,)), Group(0, (1, 2)), Group(1, (3, 4)))])
    counts = problem.model_counts
    assert scorer.work - before == counts[1] + counts[2] + 1000


def test_scores_do_not_depend_on_threads(problem):
    candidates = [random_groups(problem, seed) for seed in range(20)]
    one = Scorer(problem.requests, problem.times, num_threads=1).values(candidates)
    three = Scorer(problem.requests, problem.times, num_threads=3).values(candidates)
    assert one.tolist() == three.tolist()


def test_search_uses_no_more_than_there_is(problem):
    problem.check(search(problem, SMALL).groups)


def test_equal_seeds_find_equal_placements(problem):
    first, second = search(problem, SMALL), search(problem, SMALL)
    assert (first.groups, first.value, first.work) == (second.groups, second.value, second.work)


def test_search_is_no_worse_than_the_fast_heuristic(problem):
    fast = FastHeuristic().place(problem)
    scorer = Scorer(problem.requests, problem.times)
    assert search(problem, SMALL).value >= scorer.value(fast)


def test_beam_search_is_no_worse_than_the_fast_heuristic(problem):
    scorer = Scorer(problem.requests, problem.times)
    groups, models = empty_groups([1, 1]), tuple(range(problem.num_models))
    fast = fill_by_misses(problem, scorer, [Vacancy(groups, models)])[0]
    beam = fill_by_beam(problem, scorer, groups, models, beam=3)
    problem.check(beam)
    assert scorer.value(beam) >= scorer.value(fast)


def test_a_wider_budget_finds_what_is_at_least_as_good(problem):
    small = search(problem, SearchSettings(max_work=1, num_threads=1))
    assert search(problem, SMALL).value >= small.value


def test_uneven_groups_are_found_where_they_are_better():
    # The slow model has room only on four devices; the small ones can't be cut.
    latency_s = [1.6] + [0.1] * 4
    requests = poisson([1.0] + [7.0] * 4, [6.0] + [0.5] * 4)
    times = pipelines(latency_s, [36.0] + [9.0] * 4)
    times.stages_s[1:, 1:] = np.inf
    problem = Problem.of_one_type(requests, times, 8)
    result = search(problem, SMALL)
    assert sorted(group.config for group in result.groups) == [0, 0, 0, 0, 2]
    assert result.value > Scorer(requests, times).value(FastHeuristic().place(problem))


def test_a_large_model_that_few_ask_for_is_hosted_if_all_must_be():
    requests = poisson([4.0, 4.0, 4.0, 0.05], [0.5, 0.5, 0.5, 40.0])
    # The large one needs all four devices, where the small ones would then wait for it.
    times = pipelines([0.2, 0.2, 0.2, 8.0], [1.0, 1.0, 1.0, 36.0])
    tight = Problem.of_one_type(requests, times, 4)
    hosted = {
        hosts_all: {
            model
            for group in search(
                tight, SearchSettings(max_work=1_000_000, hosts_all=hosts_all)
            ).groups
            for model in group.models
        }
        for hosts_all in (False, True)
    }
    assert 3 not in hosted[False]
    assert 3 in hosted[True]


def test_types_of_devices_are_counted_apart():
    latency_s = [0.1, 0.1, 0.2]
    requests = poisson([4.0, 4.0, 2.0], [0.4, 0.4, 0.8])
    times = pipelines(latency_s, [9.0, 9.0, 18.0], stages=(1, 2, 1))
    problem = Problem(requests, times, config_types=(0, 0, 1), num_devices=(2, 1))
    groups = search(problem, SMALL).groups
    problem.check(groups)
    assert problem.used_devices([group.config for group in groups]) == [2, 1]
    with pytest.raises(ConfigError, match="2 devices of type 1; there are 1"):
        problem.check((Group(2, (0,)), Group(2, (1,))))


def test_a_model_that_a_configuration_cannot_run_is_never_there():
    times = pipelines([0.1, 0.1], [1.0, 1.0], stages=(1, 2))
    times.stages_s[0, 1, 0] = np.inf
    problem = Problem.of_one_type(poisson([2.0, 2.0], [1.0, 1.0]), times, 3)
    groups = search(problem, SMALL).groups
    assert all(1 not in group.models for group in groups if group.config == 0)
    assert any(1 in group.models for group in groups)


def test_more_memory_than_there_is_is_refused(problem):
    with pytest.raises(ConfigError, match="don't fit its memory"):
        problem.check((Group(0, (3, 4)),))


def test_search_needs_requests(problem):
    nothing = poisson([0.0], [1.0])
    empty = Problem.of_one_type(nothing, pipelines([0.1], [1.0]), 1)
    with pytest.raises(ConfigError, match="requests"):
        search(empty)


def test_progress_ends_with_the_best_value(problem):
    seen: list[Progress] = []
    result = search(problem, SMALL, report=seen.append)
    assert seen[-1].value == pytest.approx(result.value, abs=1e-4)
    assert [one.share for one in seen] == sorted(one.share for one in seen)


def test_a_given_start_is_never_made_worse(problem):
    start = search(problem, SMALL).groups
    settings = SearchSettings(max_work=1, num_threads=1)
    again = search(problem, settings, starts=[start])
    assert again.value >= Scorer(problem.requests, problem.times).value(start)


def test_reshaping_keeps_all_devices(problem):
    shapes = reshaped(problem, (Group(0, (0,)), Group(0, (1,)), Group(1, (3,))))
    for vacancy in shapes:
        assert problem.used_devices([group.config for group in vacancy.groups]) == [4]
    assert (1, 1) in {tuple(group.config for group in one.groups) for one in shapes}


def test_slices_share_out_the_requests(problem):
    parts = slices(problem.requests, 3)
    sizes = [len(part.arrivals_s) for part in parts]
    assert len(set(sizes)) == 1
    assert len(problem.requests.arrivals_s) - sum(sizes) in range(3)


def test_held_out_attainment_has_an_interval(problem):
    groups = search(problem, SMALL).groups
    slo_s = problem.requests.slo_s.tolist()
    found = held_out(
        groups,
        problem.times,
        lambda seed: poisson([6.0, 3.0, 2.0, 2.0, 1.0, 1.0], slo_s, seed),
        seeds=range(1, 5),
    )
    assert len(found.each) == 4
    assert 0.0 < found.half_width < found.mean <= 1.0


def test_the_interval_is_that_of_students_t():
    # Of 1, 2, 3: mean 2, deviation 1; t of two degrees of freedom is 4.303.
    assert summary([1.0, 2.0, 3.0]).half_width == pytest.approx(4.303 / 3**0.5)
