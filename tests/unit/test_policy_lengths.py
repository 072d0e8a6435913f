import random
from math import exp

import pytest

from fabric.scheduler.lengths import LengthEstimator

MODEL, TENANT = "model", "tenant"


def taught(lengths: list[int], tenant: str = TENANT) -> LengthEstimator:
    estimator = LengthEstimator()
    for length in lengths:
        estimator.observe(MODEL, tenant, length)
    return estimator


def lognormal(median: float, sigma: float, count: int) -> list[int]:
    draw = random.Random(0)
    return [max(1, round(median * exp(sigma * draw.gauss(0, 1)))) for _ in range(count)]


def test_what_is_unknown_is_guessed_the_same_for_all_and_widely() -> None:
    estimator = LengthEstimator()
    first = estimator.remaining(MODEL, TENANT, 0)
    assert 100 < first < 1000
    assert estimator.remaining("other", "someone", 0) == first
    # A wide spread: the longer it goes on, the longer it is thought to go on.
    assert estimator.remaining(MODEL, TENANT, 1000) > 2 * first


def test_equal_lengths_are_soon_known() -> None:
    estimator = taught([100] * 300)
    assert estimator.remaining(MODEL, TENANT, 0) == pytest.approx(100, rel=0.1)
    assert estimator.remaining(MODEL, TENANT, 60) == pytest.approx(40, rel=0.25)


def test_what_is_left_is_the_mean_of_those_that_got_as_far() -> None:
    lengths = lognormal(60, 1.0, 3000)
    estimator = taught(lengths)
    recent = lengths[-500:]
    for num_tokens in (0, 20, 100):
        longer = [length - num_tokens for length in recent if length > num_tokens]
        expected = sum(longer) / len(longer)
        assert estimator.remaining(MODEL, TENANT, num_tokens) == pytest.approx(expected, rel=0.3)


def test_a_heavy_tail_makes_the_old_expect_more() -> None:
    estimator = taught(lognormal(60, 1.5, 2000))
    guesses = [estimator.remaining(MODEL, TENANT, count) for count in (0, 100, 300, 900)]
    assert guesses == sorted(guesses)


def test_a_tenant_is_taken_for_the_average_until_it_is_known() -> None:
    estimator = taught([100] * 300)
    assert estimator.remaining(MODEL, "new", 0) == pytest.approx(100, rel=0.1)
    for _ in range(300):
        estimator.observe(MODEL, "new", 5)
    assert estimator.remaining(MODEL, "new", 0) < 10
    assert estimator.remaining(MODEL, TENANT, 0) == pytest.approx(100, rel=0.1)


def test_models_are_told_apart() -> None:
    estimator = taught([5] * 300)
    assert estimator.remaining("other", TENANT, 0) > 100


def test_the_recent_counts_more_than_the_old() -> None:
    estimator = taught([1000] * 1000 + [10] * 1000)
    assert estimator.remaining(MODEL, TENANT, 0) == pytest.approx(30, rel=0.5)


def test_what_is_longer_than_all_before_is_thought_to_be_half_way() -> None:
    assert taught([10] * 300).remaining(MODEL, TENANT, 2**21) == 2**21


def test_at_least_one_token_is_to_come() -> None:
    estimator = taught([1] * 2000)
    assert 1.0 <= estimator.remaining(MODEL, TENANT, 0) < 5.0
    assert estimator.remaining(MODEL, TENANT, 1) >= 1.0


def test_many_tenants_and_lengths_take_bounded_memory_and_numbers() -> None:
    estimator = LengthEstimator()
    for number in range(20_000):
        estimator.observe(MODEL, f"tenant {number % 3000}", 1 + number % 500)
    assert len(estimator._histograms) <= 1024
    assert 100 < estimator.remaining(MODEL, "tenant 5", 0) < 500
