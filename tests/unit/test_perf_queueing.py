"""Closed forms that the two-model benchmark is held to."""

import math
import random
import statistics
from itertools import accumulate

import pytest

from tests.unit.perf_modules import perf_module


@pytest.fixture(scope="module")
def queueing():
    with perf_module("queueing") as module:
        yield module


def poisson(rate_per_s, num_requests):
    rng = random.Random(1)
    return list(accumulate(rng.expovariate(rate_per_s) for _ in range(num_requests)))


@pytest.mark.parametrize("busy", [0.2, 0.6, 0.8])
def test_poisson_arrivals_wait_as_the_closed_form_says(queueing, busy):
    service = queueing.Service(alone_s=0.4, interval_s=0.2)
    rate_per_s = busy / 0.2
    latencies_s = queueing.simulate_latencies_s(service, poisson(rate_per_s, 100_000))
    expected_s = queueing.poisson_latency_s(service, rate_per_s)
    assert statistics.fmean(latencies_s) == pytest.approx(expected_s, rel=0.03)


@pytest.mark.parametrize("stages_s", [(0.2, 0.3), (0.3, 0.2), (0.1, 0.4, 0.2)])
def test_a_pipeline_is_a_queue_for_its_slowest_stage(queueing, stages_s):
    arrivals_s, free_s, expected_s = poisson(2.0, 2000), [0.0] * len(stages_s), []
    for arrival_s in arrivals_s:
        end_s = arrival_s
        for i, stage_s in enumerate(stages_s):
            end_s = free_s[i] = max(end_s, free_s[i]) + stage_s
        expected_s.append(end_s - arrival_s)
    service = queueing.Service(sum(stages_s), max(stages_s))
    assert queueing.simulate_latencies_s(service, arrivals_s) == pytest.approx(expected_s)


def test_closed_forms_give_the_gains_of_the_papers_example(queueing):
    each, pipeline = queueing.Service(0.395, 0.395), queueing.Service(0.4, 0.2)
    shared_s = queueing.poisson_latency_s(pipeline, 3.0)
    assert queueing.split_latency_s(each, [1.5, 1.5]) / shared_s == pytest.approx(1.3, rel=0.1)
    assert queueing.split_latency_s(each, [0.6, 2.4]) / shared_s == pytest.approx(6.6, rel=0.1)


def test_what_is_asked_for_too_much_waits_without_end(queueing):
    service = queueing.Service(0.1, 0.1)
    assert math.isinf(queueing.poisson_latency_s(service, 10.0))
    assert math.isinf(queueing.split_latency_s(service, [1.0, 11.0]))
