"""What the benchmarks of many models send, and when."""

import statistics
from itertools import pairwise

import pytest

from tests.unit.perf_modules import perf_module


@pytest.fixture(scope="module")
def shared_load():
    with perf_module("shared_load") as module:
        yield module


def test_popularity_falls_by_a_power_and_is_shared_out_whole(shared_load):
    shares = shared_load.power_law(6, 0.5)
    assert sum(shares) == pytest.approx(1.0)
    assert shares[0] / shares[3] == pytest.approx(2.0)
    assert shared_load.power_law(4, 0.0) == [0.25] * 4


def test_a_load_has_exactly_the_rate_asked_for(shared_load):
    for cv in (1.0, 4.0, 8.0):
        load = shared_load.draw_load([0.7, 0.3], cv, 200, 1, [(1, 1)] * 200)
        arrivals_s = load.at(20.0)
        assert arrivals_s[-1] == pytest.approx(10.0)
        assert arrivals_s == sorted(arrivals_s)
        assert len(load.models) == 200


def test_loads_repeat_with_their_seed(shared_load):
    first, again, other = (
        shared_load.draw_load([0.5, 0.5], 4.0, 50, seed, [(1, 1)] * 50) for seed in (1, 1, 2)
    )
    assert first == again
    assert first.arrivals_s != other.arrivals_s


def test_models_get_their_share_of_the_requests(shared_load):
    load = shared_load.draw_load([0.8, 0.2], 1.0, 20_000, 1, [(1, 1)] * 20_000)
    assert load.models.count(0) / 20_000 == pytest.approx(0.8, abs=0.02)


def test_gaps_vary_as_asked_for(shared_load):
    times_s = shared_load.gamma_stream(10.0, 3.0, 50_000, 1)
    gaps_s = [end - start for start, end in pairwise(times_s)]
    assert statistics.fmean(gaps_s) == pytest.approx(0.1, rel=0.1)
    assert statistics.stdev(gaps_s) / statistics.fmean(gaps_s) == pytest.approx(3.0, rel=0.1)


def test_bursts_come_no_more_often_at_the_start(shared_load):
    """In the first second there are as many arrivals as in any other, in the mean of many runs."""
    counts = [
        sum(time_s < 1.0 for time_s in shared_load.gamma_stream(10.0, 4.0, 100, seed))
        for seed in range(400)
    ]
    assert statistics.fmean(counts) == pytest.approx(10.0, rel=0.25)


def test_requests_have_the_lengths_and_objectives_of_their_models(shared_load):
    wanted = shared_load.Objectives(ttft_s=1.0, tpot_s=0.1)
    models = [shared_load.Model("a", 10), shared_load.Model("b", 100, wanted)]
    load = shared_load.Load((1, 0), [(3, 4), (2, 5)], (0.1, 0.2))
    first, second = shared_load.make_requests(load, models, 1)
    assert (first.model, first.objectives, second.model) == ("b", wanted, "a")
    assert [len(one.prompt_token_ids) for one in (first, second)] == [3, 2]
    assert [one.sampling.max_tokens for one in (first, second)] == [4, 5]
    assert max(second.prompt_token_ids) < 10
