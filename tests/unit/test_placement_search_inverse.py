"""Fewest devices, cheapest mix, highest rate, tightest objectives: cases that one can count."""

import numpy as np
import pytest

from fabric.core.errors import ConfigError
from placement.search.inverse import (
    cheapest_mix,
    fewest_devices,
    highest_rate,
    mixes_of,
    tightest_objectives,
)
from placement.search.problem import Problem
from placement.search.search import SearchSettings
from placement.simulator.service import KindRequests, ServiceTimes

SETTINGS = SearchSettings(max_work=20_000, num_threads=1)


def every_second(num_models: int, slo_s: float) -> KindRequests:
    """A request of each model, each second, all at once."""
    arrivals = np.repeat(np.arange(20.0), num_models)
    kinds = np.tile(np.arange(num_models, dtype=np.int32), 20)
    models = np.arange(num_models, dtype=np.int32)
    return KindRequests(arrivals, kinds, models, np.full(num_models, slo_s, np.float32), num_models)


def single_devices(num_models: int, latency_s: tuple[float, ...]) -> ServiceTimes:
    """One configuration of one device for each latency; a device has room for two models."""
    shape = (len(latency_s), num_models)
    stages_s = np.broadcast_to(np.array(latency_s, np.float32)[:, None, None], (*shape, 1))
    ones = np.ones(len(latency_s), np.int32)
    return ServiceTimes(
        stages_s.copy(),
        ones,
        np.zeros(shape, np.float32),
        0.0,
        np.ones(shape),
        np.full(len(latency_s), 2.0),
        ones,
    )


def one_type(num_models: int, slo_s: float, num_devices: int = 1) -> Problem:
    """Models that take half a second each on one type of device."""
    times = single_devices(num_models, (0.5,))
    return Problem.of_one_type(every_second(num_models, slo_s), times, num_devices)


def test_fewest_devices_when_each_can_serve_one_model_in_time():
    answer = fewest_devices(one_type(5, slo_s=0.6), 1.0, settings=SETTINGS)
    assert answer is not None
    assert answer.number == 5
    assert answer.result.attainment == 1.0


def test_fewest_devices_when_a_device_can_serve_two():
    answer = fewest_devices(one_type(5, slo_s=1.0), 1.0, settings=SETTINGS)
    assert answer is not None
    assert answer.number == 3
    assert [at for at, _ in answer.points] == sorted(at for at, _ in answer.points)


def test_a_target_that_no_devices_attain_has_no_answer():
    problem = one_type(2, slo_s=0.4)
    assert fewest_devices(problem, 0.5, max_devices=4, settings=SETTINGS) is None


def test_the_cheaper_mix_is_found():
    # Fast devices serve two models in time, slow ones only one: 3 models take one of each.
    times = single_devices(3, (0.5, 0.9))
    problem = Problem(every_second(3, slo_s=1.0), times, (0, 1), (2, 3))
    mix = cheapest_mix(problem, (3.0, 1.2), 1.0, SETTINGS)
    assert mix is not None
    assert mix.num_devices == (0, 3)
    dearer = cheapest_mix(problem, (3.0, 2.0), 1.0, SETTINGS)
    assert dearer is not None
    assert dearer.num_devices == (1, 1)
    assert dearer.price_per_hour == pytest.approx(5.0)


def test_mixes_stay_few():
    assert len(mixes_of((64, 64))) <= 200
    assert (64, 64) in mixes_of((64, 64))
    assert mixes_of((1, 1)) == [(0, 1), (1, 0), (1, 1)]


def test_the_highest_rate_is_what_a_device_can_serve():
    # Half a second each: without waiting, two a second.
    answer = highest_rate(one_type(1, slo_s=0.51), 1.0, tolerance=0.01, settings=SETTINGS)
    assert answer is not None
    assert answer.number == pytest.approx(2.0, rel=0.02)


def test_the_tightest_objective_is_the_service_time():
    answer = tightest_objectives(one_type(1, slo_s=2.0), 1.0, tolerance=0.01, settings=SETTINGS)
    assert answer is not None
    assert answer.number == pytest.approx(0.25, rel=0.011)


def test_a_target_must_be_a_share():
    with pytest.raises(ConfigError, match=r"target is 1\.5"):
        fewest_devices(one_type(1, slo_s=1.0), 1.5)


def test_fewest_devices_is_for_one_type():
    problem = Problem(every_second(1, 1.0), single_devices(1, (0.5, 0.9)), (0, 1), (1, 1))
    with pytest.raises(ConfigError, match="one type"):
        fewest_devices(problem, 0.9)
