"""Why requests miss: cases that have one reason are charged to it."""

from collections.abc import Sequence

import numpy as np
import pytest

from placement.groups import Group
from placement.planning.explain import Case, explain_models
from placement.planning.report import Binding
from placement.simulator.service import KindRequests, ServiceTimes

GIB = 2.0**30


def make_case(
    arrivals: Sequence[Sequence[float]],
    busy_s: Sequence[float],
    slo_s: Sequence[float],
    groups: Sequence[Sequence[int]] = ((0,),),
    model_bytes: Sequence[float] | None = None,
) -> Case:
    """Models by their requests' arrivals; every group is of one device, and of one kind."""
    size = len(arrivals)
    times = [(moment, model) for model, own in enumerate(arrivals) for moment in own]
    times.sort()
    requests = KindRequests(
        arrivals_s=np.array([moment for moment, _ in times]),
        kinds=np.array([model for _, model in times], np.int32),
        kind_models=np.arange(size, dtype=np.int32),
        slo_s=np.array(slo_s, np.float32),
        num_models=size,
    )
    service = ServiceTimes(
        stages_s=np.array(busy_s, np.float32).reshape(1, size, 1),
        num_stages=np.ones(1, np.int32),
        delay_s=np.zeros((1, size), np.float32),
        overhead_s=0.0,
        model_bytes=np.array([model_bytes or [GIB] * size]),
        budget_bytes=np.array([GIB]),
        num_devices=np.ones(1, np.int32),
    )
    hosted = [Group(0, tuple(models)) for models in groups]
    return Case(("a", "b", "c")[:size], hosted, requests, service)


def binding_of(case: Case, model: str = "a") -> list[tuple[str, float]]:
    """Constraints of a model, and the shares that they are charged with."""
    return [(one.name, one.share) for one in explain_models(case) if one.subject == model]


def every(gap_s: float, number: int, first_s: float = 0.0) -> list[float]:
    return [first_s + gap_s * index for index in range(number)]


def test_nothing_binds_a_model_whose_requests_are_in_time():
    case = make_case([every(10, 20)], [1.0], [2.0])

    assert binding_of(case) == [("none", 0.0)]


def test_request_that_is_late_alone_is_charged_to_unloaded_latency():
    case = make_case([every(10, 20)], [3.0], [2.0])

    assert binding_of(case) == [("unloaded latency", 1.0)]


def test_more_work_than_devices_can_do_is_charged_to_compute():
    case = make_case([every(0.5, 100)], [1.0], [1.6])

    [(name, share)] = binding_of(case)

    assert name == "compute"
    assert share == pytest.approx(0.5, abs=0.05)


def test_short_requests_behind_long_ones_of_another_model_are_charged_to_convoy():
    case = make_case([every(1, 100, 0.5), every(25, 4)], [0.1, 5.0], [1.0, 30.0], [(0, 1)])

    [(name, share)] = binding_of(case)

    assert name == "convoy"
    assert share == pytest.approx(0.16, abs=0.05)
    assert binding_of(case, "b") == [("none", 0.0)]


def test_burst_that_a_group_of_other_models_could_take_is_charged_to_memory():
    pairs = [moment for moment in every(20, 10) for _ in range(2)]
    case = make_case([pairs, every(100, 2, 10.0)], [1.0, 1.0], [1.5, 9.0], [(0,), (1,)])

    assert binding_of(case) == [("memory", 0.5)]


def test_steady_load_that_idle_groups_could_take_is_charged_to_memory():
    case = make_case([every(0.5, 100), every(20, 2)], [1.0, 1.0], [1.6, 9.0], [(0,), (1,)])

    [(name, share), *_] = binding_of(case)

    assert name == "memory"
    assert share == pytest.approx(0.5, abs=0.1)


def test_burst_that_no_placement_could_take_is_charged_to_burst():
    pairs = [moment for moment in every(20, 10) for _ in range(2)]
    case = make_case([pairs], [1.0], [1.5])

    assert binding_of(case) == [("burst", 0.5)]


def test_shares_of_several_reasons_sum_to_what_misses():
    bursts = [moment for moment in every(8, 20) for _ in range(4)]
    case = make_case([bursts, every(20, 8)], [1.0, 6.0], [2.5, 30.0], [(0, 1)])

    charged = binding_of(case)

    missed = int(case.num_missed()[0])
    assert len(charged) > 1
    assert sum(share for _, share in charged) == pytest.approx(missed / len(bursts))
    assert charged == sorted(charged, key=lambda one: -one[1])


def test_model_in_no_group_is_told_what_it_needs():
    case = make_case([every(10, 5), every(10, 5)], [1.0, 1.0], [2.0, 2.0])

    found = explain_models(case)

    assert found[-1] == Binding(
        "b", "memory", 1.0, "in no group: needs 1.0 GiB of a device, which others have"
    )


def test_model_that_no_group_could_host_is_told_so():
    case = make_case(
        [every(10, 5), every(10, 5)], [1.0, 1.0], [2.0, 2.0], model_bytes=[GIB, np.inf]
    )

    assert "on none could it meet its objectives" in explain_models(case)[-1].why
