"""How the multiplexing benchmark finds the rate at which objectives are met."""

import math

import pytest

from tests.unit.perf_modules import perf_module


@pytest.fixture(scope="module")
def goodput():
    with perf_module("goodput") as module:
        yield module


@pytest.mark.parametrize("highest", [-15, -7, 0, 3, 19])
@pytest.mark.parametrize("first_k", [-14, -4, 2])
def test_the_search_finds_the_highest_point_that_is_attained(goodput, highest, first_k):
    found = goodput.find_goodput(goodput.Search(10.0), first_k, lambda k: k <= highest)
    assert found == highest


def test_the_search_asks_for_each_point_once(goodput):
    asked = []

    def attains(k):
        asked.append(k)
        return k <= -9

    goodput.find_goodput(goodput.Search(10.0), -4, attains)
    assert len(asked) == len(set(asked)) <= 5


def test_where_nothing_is_attained_there_is_no_goodput(goodput):
    assert goodput.find_goodput(goodput.Search(10.0), 0, lambda k: False) is None


def test_the_search_ends_where_everything_is_attained(goodput):
    search = goodput.Search(10.0)
    assert goodput.find_goodput(search, 0, lambda k: True) >= search.max_k


def test_one_in_a_hundred_may_miss(goodput):
    counts = [goodput.num_allowed(num_requests) for num_requests in (50, 100, 199, 200, 300)]
    assert counts == [0, 1, 1, 2, 3]


def test_requests_that_were_not_served_count_as_missed(goodput):
    assert goodput.attainment([True, True, False], 10) == 0.2


def test_quantiles_are_values_that_were_measured(goodput):
    assert goodput.quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert goodput.quantile(range(1, 101), 0.99) == 99
    assert math.isinf(goodput.quantile([], 0.99))
