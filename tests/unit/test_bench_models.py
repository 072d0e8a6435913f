"""Which models a benchmark asks, and when."""

import statistics
from collections import Counter
from itertools import pairwise

import pytest

from fabric.cli.bench_models import (
    ModelShare,
    draw_mix,
    draw_models,
    parse_model,
    shares_of,
)
from fabric.cli.bench_workload import gamma_arrivals
from fabric.core.errors import ConfigError

SHARES = (ModelShare("a", 0.5), ModelShare("b", 0.3), ModelShare("c", 0.2))


def test_a_model_may_have_a_weight():
    assert parse_model("a") == ("a", None)
    assert parse_model("x=1=2.5") == ("x=1", 2.5)


@pytest.mark.parametrize("text", ["a=", "a=b", "a=0", "a=-1", "a=inf", "a=nan"])
def test_a_weight_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match=f"{text}: .* is not a number above 0"):
        parse_model(text)


def test_models_without_weights_count_one():
    assert shares_of([("a", None), ("b", 3.0)]) == (ModelShare("a", 0.25), ModelShare("b", 0.75))


def test_popularity_is_a_power_law_over_the_order():
    shares = [each.share for each in shares_of([(name, None) for name in "abcd"], 0.5)]
    assert sum(shares) == pytest.approx(1)
    assert [shares[0] / share for share in shares] == pytest.approx([1, 2**0.5, 3**0.5, 2])


def test_models_are_divided_in_one_way_and_named_once():
    with pytest.raises(ConfigError, match="a is there twice"):
        shares_of([("a", None), ("b", None), ("a", 2.0)])
    with pytest.raises(ConfigError, match="--popularity"):
        shares_of([("a", None), ("b", 2.0)], 0.5)


@pytest.mark.parametrize("cv", [0.0, 1.0, 4.0])
def test_each_model_has_its_share_of_the_rate_and_the_variation_asked_for(cv):
    mix = draw_mix(SHARES, 60_000, rate_per_s=10.0, cv=cv, seed=1)
    assert [at_s for at_s, _ in mix] == sorted(at_s for at_s, _ in mix)
    assert mix[0][0] == 0.0
    for each in SHARES:
        times_s = [at_s for at_s, model in mix if model == each.model]
        gaps_s = [b - a for a, b in pairwise(times_s)]
        mean_s = statistics.fmean(gaps_s)
        assert mean_s == pytest.approx(1 / (10.0 * each.share), rel=0.1)
        assert statistics.pstdev(gaps_s) / mean_s == pytest.approx(cv, rel=0.1, abs=1e-6)


def test_bursts_favour_no_model_in_a_short_run():
    # Processes that began at an arrival would give all three about the same here.
    counts = Counter(m for i in range(2000) for _, m in draw_mix(SHARES, 12, 10.0, 4.0, seed=i))
    assert counts["a"] / counts.total() == pytest.approx(0.5, abs=0.05)
    assert counts["c"] / counts.total() == pytest.approx(0.2, abs=0.05)


def test_a_mix_repeats_with_its_seed():
    assert draw_mix(SHARES, 50, 10.0, 4.0, 3) == draw_mix(SHARES, 50, 10.0, 4.0, 3)
    assert draw_mix(SHARES, 50, 10.0, 4.0, 3) != draw_mix(SHARES, 50, 10.0, 4.0, 4)


def test_a_model_alone_has_the_arrivals_of_its_rate():
    mix = draw_mix([ModelShare("a", 1.0)], 50, 10.0, 4.0, 3)
    assert mix == [(at_s, "a") for at_s in gamma_arrivals(50, 10.0, 4.0, 3)]


def test_without_a_rate_models_are_drawn_by_their_shares():
    mix = draw_mix(SHARES, 4000, float("inf"), 1.0, 1)
    assert {at_s for at_s, _ in mix} == {0.0}
    assert [model for _, model in mix] == draw_models(SHARES, 4000, 1)
    assert Counter(model for _, model in mix)["b"] / 4000 == pytest.approx(0.3, abs=0.03)
