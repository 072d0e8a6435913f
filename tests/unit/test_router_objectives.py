"""Which objectives a request has, and whether it will meet and has met them."""

import pytest

from fabric.core.request import Objectives, Timing
from fabric.router.figures import SloFigures
from fabric.router.forecast import Forecast
from fabric.router.objectives import MAX_RETRY_S, MIN_RETRY_S, first_miss, in_force, judged, refusal

FORECAST = Forecast(ttft_s=1.0, tpot_s=0.1, e2e_s=3.0)


def test_a_requests_own_objectives_come_before_its_models_one_by_one():
    asked = Objectives(ttft_s=1.0)
    configured = Objectives(ttft_s=5.0, e2e_s=9.0, refuse_if_late=True)
    assert in_force(asked, configured) == Objectives(1.0, None, 9.0, refuse_if_late=True)
    assert in_force(asked, None) == asked


@pytest.mark.parametrize(
    ("objectives", "missed"),
    [
        (Objectives(), None),
        (Objectives(1.0, 0.1, 3.0), None),
        (Objectives(0.9, 0.01, 0.1), "ttft"),
        (Objectives(1.0, 0.09, 0.1), "tpot"),
        (Objectives(e2e_s=2.9), "e2e"),
    ],
)
def test_the_first_objective_that_is_out_of_reach_is_told(objectives, missed):
    miss = first_miss(objectives, FORECAST)
    assert (miss and miss.objective) == missed


def test_what_can_not_be_predicted_is_not_missed():
    assert first_miss(Objectives(0.001), None) is None


def test_a_refusal_says_what_would_be_missed_and_when_to_come_again():
    miss = first_miss(Objectives(ttft_s=0.25), FORECAST)
    error = refusal("m", miss)
    assert error.message == (
        "a request to 'm' would miss its ttft objective: 1 s predicted, 0.25 s allowed"
    )
    assert error.retry_after_s == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("ttft_s", "allowed_s", "retry_s"), [(1.0, 0.9999, MIN_RETRY_S), (1e6, 1.0, MAX_RETRY_S)]
)
def test_the_time_to_come_again_is_bounded(ttft_s, allowed_s, retry_s):
    miss = first_miss(Objectives(ttft_s=allowed_s), Forecast(ttft_s, 0.1, 2 * ttft_s))
    assert refusal("m", miss).retry_after_s == retry_s


def test_what_was_measured_is_held_against_each_objective():
    timing = Timing(ttft_s=1.0, decode_s=0.9, e2e_s=1.9)
    assert dict(judged(Objectives(1.0, 0.09, 2.0), timing, 10)) == {
        "ttft": True,
        "tpot": False,
        "e2e": True,
    }
    assert dict(judged(Objectives(tpot_s=0.01), timing, 1)) == {"tpot": True}


def test_only_requests_that_had_objectives_and_met_all_are_good():
    figures = SloFigures()
    timing = Timing(ttft_s=1.0, decode_s=0.9, e2e_s=1.9)
    figures.note_completed("m", Objectives(), timing, 10)
    figures.note_completed("m", Objectives(ttft_s=2.0), timing, 10)
    figures.note_completed("m", Objectives(ttft_s=2.0, e2e_s=1.0), timing, 10)
    figures.note_failed("m", Objectives(e2e_s=1.0))
    figures.note_refused("m", "ttft")
    assert figures.good == {"m": 1}
    assert figures.outcomes == {
        ("m", "ttft", "met"): 2,
        ("m", "e2e", "missed"): 2,
        ("m", "ttft", "refused"): 1,
    }
