"""How the multiplexing benchmark cuts memory up, and what it counts."""

import sys

import pytest

from tests.unit.perf_modules import perf_module


@pytest.fixture(scope="module")
def multiplexing():
    with perf_module("multiplexing") as module:
        yield module


def served(module, name, first_token_s, ended_s, num_tokens):
    return module.Served(name, 0.0, first_token_s, ended_s, num_tokens)


def test_memory_is_cut_by_shares_but_holds_the_longest_request(multiplexing):
    partition = sys.modules["sharing"].partition
    assert partition([0.5, 0.3, 0.2], 100, 10) == [50, 30, 20]
    cut = partition([0.8, 0.1, 0.1], 100, 20)
    assert cut == [60, 20, 20]
    assert partition([0.9, 0.05, 0.05], 30, 10) == [10, 10, 10]
    with pytest.raises(ValueError, match="does not hold"):
        partition([0.5, 0.5], 10, 6)


def test_an_objective_is_met_if_no_part_of_it_is_missed(multiplexing):
    load = multiplexing.Load((0,), [(2, 3)], (0.0,))
    wanted = multiplexing.Objectives(ttft_s=1.0, tpot_s=0.5)
    (request,) = multiplexing.make_requests(load, [multiplexing.Model("a", 9, wanted)], 1)
    assert multiplexing.is_met(served(multiplexing, "0", 1.0, 2.0, 3), request)
    assert not multiplexing.is_met(served(multiplexing, "0", 1.1, 1.2, 3), request)
    assert not multiplexing.is_met(served(multiplexing, "0", 1.0, 2.1, 3), request)
    assert multiplexing.is_met(served(multiplexing, "0", 0.5, 0.5, 1), request)


def test_what_was_cut_off_counts_as_missed(multiplexing):
    load = multiplexing.Load((0,) * 4, [(2, 3)] * 4, (0.0,) * 4)
    wanted = multiplexing.Objectives(ttft_s=1.0)
    requests = multiplexing.make_requests(load, [multiplexing.Model("a", 9, wanted)], 1)
    found = [served(multiplexing, "2", 0.5, 1.0, 3), served(multiplexing, "0", 1.5, 2.0, 3)]
    assert multiplexing.attained_share(found, requests) == 0.25


def test_gains_are_of_the_same_seed_and_cv(multiplexing):
    search = multiplexing.Search(10.0, step=2.0, min_k=-5)
    shared, base = multiplexing.SHARED, multiplexing.TIME_SHARED
    found = [
        multiplexing.Goodput(shared, 4.0, 1, 0),
        multiplexing.Goodput(base, 4.0, 1, -1),
        multiplexing.Goodput(shared, 4.0, 2, 1),
        multiplexing.Goodput(base, 4.0, 2, None),
        multiplexing.Goodput(base, 1.0, 1, 3),
    ]
    assert multiplexing.gain_over(search, found, base, 4.0) == [2.0, 64.0]
    assert multiplexing.gain_over(search, found, multiplexing.PARTITIONED, 4.0) == []
