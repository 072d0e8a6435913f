"""Queueing formulas of devices and pipelines against the request-level simulator."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

from fabric.core.errors import ConfigError
from placement.alpaserve.bounds import (
    max_imbalance,
    max_overhead,
    pipeline_latency_s,
    simple_latency_s,
)
from placement.alpaserve.workload import merged_arrivals
from placement.groups import Group
from placement.simulator.request_level import RequestSimulator
from placement.simulator.service import KindRequests, ServiceTimes
from placement.workload.trace import FloatArray, IntArray


def mean_latency_s(
    arrivals: FloatArray,
    models: IntArray,
    stages: Sequence[float],
    groups: Sequence[Group],
) -> float:
    """Mean over requests that nothing refuses; all models take the same stages everywhere."""
    num_models = int(models.max()) + 1
    requests = KindRequests(
        arrivals_s=arrivals,
        kinds=models,
        kind_models=np.arange(num_models, dtype=np.int32),
        slo_s=np.full(num_models, np.inf, dtype=np.float32),
        num_models=num_models,
    )
    times = ServiceTimes(
        stages_s=np.tile(np.array(stages, dtype=np.float32), (1, num_models, 1)),
        num_stages=np.array([len(stages)], dtype=np.int32),
        delay_s=np.zeros((1, num_models), dtype=np.float32),
        overhead_s=0.0,
        model_bytes=np.zeros((1, num_models)),
        budget_bytes=np.zeros(1),
        num_devices=np.array([len(stages)], dtype=np.int32),
    )
    return RequestSimulator(requests, times).score(groups).mean_latency_s


def poisson(rate_per_s: float, num_requests: int = 300_000) -> tuple[FloatArray, IntArray]:
    rng = np.random.default_rng(11)
    arrivals = np.cumsum(rng.exponential(1 / rate_per_s, num_requests))
    return arrivals, rng.integers(0, 2, num_requests).astype(np.int32)


APART = (Group(0, (0,)), Group(0, (1,)))
TOGETHER = (Group(0, (0, 1)),)


@pytest.mark.parametrize("busy", [0.3, 0.6, 0.8])
def test_one_device_waits_as_an_m_d_1_queue(busy: float):
    arrivals, models = poisson(busy)
    measured = mean_latency_s(arrivals, models, [1.0], TOGETHER)
    assert measured == pytest.approx(1 + busy / (2 * (1 - busy)), rel=0.03)


@pytest.mark.parametrize("stages", [(0.25, 0.25), (0.1, 0.3, 0.2), (0.3, 0.1)])
def test_a_pipeline_waits_at_its_slowest_stage_only(stages: tuple[float, ...]):
    arrivals, models = poisson(2.4)
    measured = mean_latency_s(arrivals, models, stages, TOGETHER)
    assert measured == pytest.approx(pipeline_latency_s(2.4, sum(stages), max(stages)), rel=0.03)


@pytest.mark.parametrize("load", [0.4, 1.0, 1.6])
def test_pipelines_at_their_bounds_are_as_fast_as_a_device_for_each(load: float):
    arrivals, models = poisson(load)
    apart = mean_latency_s(arrivals, models, [1.0], APART)
    assert apart == pytest.approx(simple_latency_s(load, 1.0), rel=0.03)
    half = max_overhead(load) / 2
    assert mean_latency_s(arrivals, models, [half, half], TOGETHER) == pytest.approx(
        apart, rel=0.04
    )
    slow = max_imbalance(load) / 2
    uneven = mean_latency_s(arrivals, models, [slow, 1 - slow], TOGETHER)
    assert uneven == pytest.approx(apart, rel=0.04)


@pytest.mark.parametrize("load", [0.1, 0.9, 1.7])
def test_the_overhead_bound_is_the_published_polynomials_root(load: float):
    r = load
    root = math.sqrt(64 - 96 * r + 56 * r**2 - 12 * r**3 + r**4)
    assert max_overhead(load) == pytest.approx((r**2 - 8 + root) / (3 * (r**2 - 2 * r)))


def test_idle_devices_bear_no_overhead_and_any_imbalance_that_saves_nothing():
    assert max_overhead(0.0) == pytest.approx(1.0)
    assert max_imbalance(0.0) == pytest.approx(math.sqrt(2))


@pytest.mark.parametrize("load", [-0.1, 2.0, float("nan")])
def test_loads_that_two_devices_cannot_bear_are_refused(load: float):
    with pytest.raises(ConfigError, match="below 2"):
        max_overhead(load)
    with pytest.raises(ConfigError, match="below 2"):
        max_imbalance(load)


def test_a_saturated_stage_is_refused():
    with pytest.raises(ConfigError, match="keep a stage busy"):
        pipeline_latency_s(1.2, 1.0, 1.0)


# Speed-ups as its figure 2 gives them, rounded, and how near ours must come: its requests were few.
@pytest.mark.parametrize(
    ("shares", "cv", "speedup", "tolerance"),
    [((0.5, 0.5), 1.0, 1.3, 0.1), ((0.5, 0.5), 3.0, 1.9, 0.1), ((0.2, 0.8), 1.0, 6.6, 1.0)],
)
def test_two_models_on_two_devices_gain_what_alpaserve_says(
    shares: tuple[float, float], cv: float, speedup: float, tolerance: float
):
    arrivals, models = merged_arrivals(3.0 * np.array(shares), cv, duration_s=60_000.0)
    apart = mean_latency_s(arrivals, models, [0.395], APART)
    together = mean_latency_s(arrivals, models, [0.2, 0.2], TOGETHER)
    assert apart / together == pytest.approx(speedup, abs=tolerance)
