"""Integer weights in gangs: stages change no token, and neither do batches of sharded layers."""

from dataclasses import replace
from pathlib import Path

import pytest

from fabric.core.weights import Quantization
from fabric.engine.build import build_engine
from fabric.engine.offline import generate
from fabric.engine.settings import EngineSettings
from tests.integration.gang_world import PROMPTS, Layout, requests, start, stories_settings, tokens


@pytest.fixture(params=["int8", "int4"])
def settings(stories_path: Path, request: pytest.FixtureRequest) -> EngineSettings:
    found = stories_settings(stories_path)
    quantization: Quantization = request.param
    models = tuple(replace(model, quantization=quantization) for model in found.worker.models)
    return replace(found, worker=replace(found.worker, models=models))


def test_stages_give_the_tokens_of_one_process(settings: EngineSettings) -> None:
    alone = build_engine(settings)
    prompts = [alone.tokenizer.encode(prompt) for prompt in PROMPTS]
    expected = tokens(generate(alone.engine, requests(prompts)))
    gang = start(settings, Layout(2, 1, is_threads=True))
    try:
        assert tokens(generate(gang.engine().engine, requests(prompts))) == expected
    finally:
        gang.stop()


def test_tensor_ranks_give_each_request_the_same_tokens_alone_and_in_a_batch(
    settings: EngineSettings,
) -> None:
    gang = start(settings, Layout(1, 2, is_threads=True))
    try:
        built = gang.engine()
        prompts = [built.tokenizer.encode(prompt) for prompt in PROMPTS]
        together = tokens(generate(built.engine, requests(prompts)))
        for prompt, expected in zip(prompts, together, strict=True):
            assert tokens(generate(gang.engine().engine, requests([prompt]))) == [expected]
    finally:
        gang.stop()
