"""What the two-model benchmark predicts, and how it is judged."""

import pytest

from tests.unit.perf_modules import perf_module


@pytest.fixture(scope="module")
def two_models():
    with perf_module("two_models") as module:
        yield module


def test_a_device_each_serves_its_own_models_requests_only(two_models):
    each, shared = two_models.SUBJECTS
    load = two_models.Load((0, 0, 1), [(1, 1)] * 3, (0.0, 0.0, 0.0))
    one = two_models.Service(1.0, 1.0)
    assert sorted(two_models.predict_s(each, one, load, [0.0] * 3)) == [1.0, 1.0, 2.0]
    pipeline = two_models.Service(1.0, 0.5)
    assert two_models.predict_s(shared, pipeline, load, [0.0] * 3) == [1.0, 1.5, 2.0]


def test_only_poisson_arrivals_have_a_closed_form(two_models):
    each, shared = two_models.SUBJECTS
    service, settings = two_models.Service(0.1, 0.1), two_models.SETTINGS
    assert two_models.closed_form_s(each, service, settings["gamma_cv3"], 10.0) is None
    even = two_models.closed_form_s(each, service, settings["poisson"], 10.0)
    split = two_models.closed_form_s(each, service, settings["split_20_80"], 10.0)
    assert even == pytest.approx(0.1 + 0.5 * 0.1 / (2 * 0.5))
    assert split > even
    pipelined = two_models.closed_form_s(
        shared, two_models.Service(0.1, 0.05), settings["poisson"], 10.0
    )
    assert pipelined == pytest.approx(0.1 + 0.5 * 0.05 / (2 * 0.5))


def test_a_gain_above_one_means_that_sharing_is_better(two_models, capsys):
    each = two_models.Figures(2.0, 4.0, 1.8, 1.9, 1.0, 1.0)
    shared = two_models.Figures(1.0, 1.0, 1.0, 1.0, 1.0, 0.5)
    found = two_models.gains(
        two_models.SETTINGS["poisson"], dict(zip(two_models.SUBJECTS, (each, shared), strict=True))
    )
    assert (found["mean"], found["p99"], found["closed_form"]) == (2.0, 4.0, 1.9)
    two_models.print_bars({"poisson": found, "gamma_cv3": found | {"simulated": 4.0}})
    assert capsys.readouterr().out.splitlines() == [
        "BAR two_models_poisson 2.00 1.0 ok",
        "BAR two_models_poisson_vs_predicted 1.05 0.75-1.25 ok",
        "BAR two_models_gamma_cv3 2.00 1.0 ok",
        "BAR two_models_gamma_cv3_vs_predicted 0.50 0.75-1.25 short",
    ]


def test_devices_slower_than_the_load_allows_are_short_of_what_is_predicted(two_models, capsys):
    row = two_models.Figures(2.0, 4.0, 1.8, float("inf"), 1.0, 1.0)
    found = two_models.gains(
        two_models.SETTINGS["poisson"], dict.fromkeys(two_models.SUBJECTS, row)
    )
    two_models.print_bars({"poisson": found})
    assert "two_models_poisson_vs_predicted nan 0.75-1.25 short" in capsys.readouterr().out
