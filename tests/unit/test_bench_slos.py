"""The bounds that a benchmark judges each model by."""

import pytest

from fabric.cli.bench_load import LoadOptions
from fabric.cli.bench_prompts import PlannedRequest
from fabric.cli.bench_slos import objectives_of, parse_slo, slos_of, unloaded_ms
from fabric.client import AsyncClient, Objectives
from fabric.core.errors import ConfigError
from tests.unit.fake_router import serving


def test_a_models_own_bounds_go_before_measured_ones_and_those_before_none():
    scaled_ms = {"a": 50.0, "b": 70.0}
    of_models = [["b", "ttft:20", "e2el:90"]]
    assert slos_of(["a", "b", "c"], {"ttft": 10.0}, of_models, scaled_ms) == {
        "a": {"ttft": 10.0, "e2el": 50.0},
        "b": {"ttft": 20.0, "e2el": 90.0},
        "c": {"ttft": 10.0},
    }
    assert slos_of(["a", "b"], {}, [["a", "tpot:5"]], {}) == {"a": {"tpot": 5.0}}


def test_bounds_are_told_in_the_order_of_the_metrics():
    (found,) = slos_of(["a"], {"e2el": 9.0}, [["a", "tpot:5", "ttft:1"]], {}).values()
    assert list(found) == ["ttft", "tpot", "e2el"]


@pytest.mark.parametrize("words", [["x", "ttft:1"], ["a"], ["a", "speed:1"], ["a", "ttft:soon"]])
def test_wrong_bounds_of_a_model_are_told(words):
    with pytest.raises(ConfigError, match=f"--goodput-of {words[0]}"):
        slos_of(["a"], {}, [words], {})


@pytest.mark.parametrize("text", ["ttft", "speed:1", "ttft:0", "ttft:-1", "ttft:inf"])
def test_a_bound_is_above_zero_and_of_a_known_metric(text):
    with pytest.raises(ValueError, match=f"{text}: "):
        parse_slo(text)


def test_bounds_become_objectives_in_seconds():
    assert objectives_of({"ttft": 200.0, "e2el": 1500.0}) == Objectives(0.2, None, 1.5, True)
    assert objectives_of({}) == Objectives(refuse_if_late=True)


async def test_each_models_typical_request_is_measured_alone():
    asked = [("a", 2), ("a", 9), ("b", 5), ("a", 4)]
    requests = [PlannedRequest(model, 0.0, (1, 2), length) for model, length in asked]
    async with serving() as router, AsyncClient(router.target) as client:
        found = await unloaded_ms(client, requests, LoadOptions())
    assert found.keys() == {"a", "b"}
    assert min(found.values()) > 0
    sent = [(spec.model, spec.sampling.max_tokens) for spec in router.specs]
    assert sent == [("a", 4)] * 4 + [("b", 5)] * 4
