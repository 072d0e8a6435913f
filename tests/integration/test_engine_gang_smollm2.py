"""SmolLM2-135M over shards: nine heads and three KV heads cut in three, or layers in two stages."""

import dataclasses
import json
import time
from pathlib import Path

import pytest

from fabric.core.errors import ConfigError
from fabric.core.plan import ParallelConfig
from fabric.engine.build import BuiltEngine, build_engine
from fabric.engine.offline import generate
from fabric.engine.settings import EngineSettings, ModelSettings, WorkerSettings
from fabric.engine.shard_host import ProcessShardHost, start_gang
from fabric.models.sources import LocalModel, default_cache_dir
from fabric.scheduler.settings import SchedulerConfig
from tests.integration.gang_world import Layout, requests, start, tokens

pytestmark = [pytest.mark.weights, pytest.mark.timeout(600)]

NUM_PROMPTS = 20


@pytest.fixture(scope="module")
def settings(smollm2_local: LocalModel) -> EngineSettings:
    model = ModelSettings(
        model="smollm2", source=str(smollm2_local.path), dtype="float32", max_model_len=1024
    )
    worker = WorkerSettings(
        models=(model,),
        cache_dir=default_cache_dir(),
        num_threads=1,
    )
    scheduler = SchedulerConfig(max_num_seqs=20, max_num_batched_tokens=64)
    return EngineSettings(worker=worker, scheduler=scheduler)


@pytest.fixture(scope="module")
def alone(settings: EngineSettings) -> BuiltEngine:
    worker = dataclasses.replace(settings.worker, num_threads=2)
    return build_engine(dataclasses.replace(settings, worker=worker))


@pytest.fixture(scope="module")
def prompts(alone: BuiltEngine, data_path: Path) -> list[list[int]]:
    """The first chat turns of MT-bench, as the chat template renders them."""
    lines = (data_path / "prompts/mt_bench_questions.jsonl").read_text().splitlines()
    turns = [json.loads(line)["turns"][0] for line in lines[:: len(lines) // NUM_PROMPTS]]
    chats = [[{"role": "user", "content": turn}] for turn in turns[:NUM_PROMPTS]]
    return [list(alone.tokenizer.apply_chat_template(chat)) for chat in chats]


@pytest.fixture(scope="module")
def expected(alone: BuiltEngine, prompts: list[list[int]]) -> list[list[list[int]]]:
    return tokens(generate(alone.engine, requests(prompts, model="smollm2")))


@pytest.mark.parametrize("layout", [Layout(1, 3), Layout(2, 1)], ids=str)
def test_greedy_tokens_are_those_of_one_process(
    settings: EngineSettings,
    prompts: list[list[int]],
    expected: list[list[list[int]]],
    layout: Layout,
) -> None:
    gang = start(settings, layout)
    try:
        built = gang.engine()
        assert tokens(generate(built.engine, requests(prompts, model="smollm2"))) == expected
        report = built.engine.report()
        assert report.num_free_blocks == report.num_blocks
    finally:
        gang.stop()


@pytest.mark.parametrize("tensor", [2, 4])
def test_ranks_that_do_not_divide_the_heads_are_refused_at_once(
    settings: EngineSettings, tensor: int
) -> None:
    cut = dataclasses.replace(settings, parallel=ParallelConfig(1, tensor))
    host = ProcessShardHost(cut.parallel)
    start_s = time.monotonic()
    message = f"^parallel.tensor is {tensor}; the model's 9 heads and 3 KV heads allow 1, 3, 9$"
    with pytest.raises(ConfigError, match=message):
        start_gang(cut, host)
    assert time.monotonic() - start_s < 10.0
    assert host.num_alive == 0
