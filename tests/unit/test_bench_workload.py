"""Arrivals and traces of a benchmark."""

import statistics
from itertools import pairwise

import pytest

from fabric.cli.bench_workload import fit_trace, gamma_arrivals
from fabric.core.traces import Arrival


def gaps(arrivals_s):
    return [b - a for a, b in pairwise(arrivals_s)]


@pytest.mark.parametrize("cv", [0.5, 1.0, 2.0])
def test_gamma_arrivals_have_the_rate_and_variation_asked_for(cv):
    found = gaps(gamma_arrivals(40_000, rate_per_s=8.0, cv=cv, seed=1))
    mean_s = statistics.fmean(found)
    assert mean_s == pytest.approx(1 / 8, rel=0.05)
    assert statistics.pstdev(found) / mean_s == pytest.approx(cv, rel=0.05)


def test_without_variation_arrivals_are_a_clock():
    assert gamma_arrivals(4, rate_per_s=2.0, cv=0.0, seed=1) == [0.0, 0.5, 1.0, 1.5]


def test_an_infinite_rate_sends_everything_at_once():
    assert gamma_arrivals(3, rate_per_s=float("inf"), cv=1.0, seed=1) == [0.0, 0.0, 0.0]


def test_arrivals_repeat_with_their_seed():
    assert gamma_arrivals(9, 1.0, 1.0, seed=3) == gamma_arrivals(9, 1.0, 1.0, seed=3)
    assert gamma_arrivals(9, 1.0, 1.0, seed=3) != gamma_arrivals(9, 1.0, 1.0, seed=4)


def test_a_trace_is_cut_scaled_and_capped():
    trace = [Arrival(0.0, 10, 0), Arrival(4.0, 900, 90), Arrival(9.0, 1, 1)]
    assert fit_trace(trace, 2, scale=0.5, max_input=100, max_output=50) == [
        Arrival(0.0, 10, 1),
        Arrival(2.0, 100, 50),
    ]
