"""Prompts of a benchmark: where they come from, and how they fit their models."""

import pytest

from fabric.cli.bench_prompts import (
    PlannedRequest,
    fit_contexts,
    fit_texts,
    plan_prompts,
    plan_random,
    read_prompts,
)
from fabric.client import AsyncClient
from fabric.core.errors import ConfigError
from fabric.core.traces import Arrival
from tests.unit.fake_router import serving


def test_prompts_are_read_in_three_forms(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n{"question": "b"}\n{"turns": ["c", "d"]}\n')
    assert read_prompts(path) == ["a", "b", "c"]


@pytest.mark.parametrize("line", ["{}", "[1]", '{"turns": []}', '{"prompt": 5}', "x"])
def test_a_broken_prompt_names_the_line(tmp_path, line):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n' + line + "\n")
    with pytest.raises(ConfigError, match=r"prompts\.jsonl:2"):
        read_prompts(path)


def test_random_prompts_have_the_lengths_asked_for_and_stay_in_the_vocabulary():
    arrivals = [Arrival(0.0, 5, 2, "a"), Arrival(1.0, 50, 3, "b")]
    plan = plan_random(arrivals, {"a": 2, "b": 10}, seed=1)
    assert [(r.model, len(r.prompt), r.max_tokens) for r in plan] == [("a", 5, 2), ("b", 50, 3)]
    assert [max(request.prompt) for request in plan] == [1, 9]


def test_prompts_start_again_when_they_run_out():
    plan = plan_prompts([Arrival(float(i), 1, 4) for i in range(3)], ["a", "b"])
    assert [request.prompt for request in plan] == ["a", "b", "a"]


@pytest.mark.parametrize(
    ("lens", "fitted"),
    [((40, 24), (40, 24)), ((60, 8), (32, 8)), ((20, 90), (20, 44)), ((90, 90), (32, 32))],
)
def test_lengths_are_cut_to_the_models_context(lens, fitted):
    (found,) = fit_contexts([Arrival(0.0, *lens, "a")], {"a": 64, "b": 9})
    assert found.output_len == fitted[1]
    assert found.input_len == min(lens[0], 64 - fitted[1])


async def test_outputs_are_cut_to_what_a_text_leaves_of_the_context():
    requests = [PlannedRequest("tiny", 0.0, text, 30) for text in ("a" * 9, "b" * 50, "c" * 99)]
    async with serving() as router, AsyncClient(router.target) as client:
        fitted = await fit_texts(client, requests, is_chat=True)
    assert [request.max_tokens for request in fitted] == [30, 14, 1]
