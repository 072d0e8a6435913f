"""An engine that drives shard workers in other processes gives the tokens of one process."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fabric.core.plan import ParallelConfig
from fabric.core.request import GenerationRequest
from fabric.core.sampling import SamplingParams
from fabric.engine.build import BuiltEngine, build_engine
from fabric.engine.offline import Generated, generate
from fabric.engine.settings import EngineSettings, WorkerSettings
from fabric.engine.shard_host import ProcessShardHost, start_gang
from fabric.scheduler.scheduler import SchedulerConfig

pytestmark = pytest.mark.dist

PROMPTS = (
    "Once upon a time",
    "One day, a cat",
    "The big red ball",
    "She was sad because",
    "Tom and Sue went to the park. They saw a dog. The dog was very",
    "Mom said",
)
NUM_TOKENS = 64


@pytest.fixture(scope="module")
def settings(stories_path: Path) -> EngineSettings:
    worker = WorkerSettings(
        model="stories",
        source=str(stories_path),
        cache_dir=stories_path,
        dtype="float32",
        kv_cache_bytes=4 * 2**20,
        num_threads=1,
    )
    return EngineSettings(
        worker=worker, scheduler=SchedulerConfig(max_num_seqs=16, max_num_batched_tokens=16)
    )


def requests(built: BuiltEngine) -> list[GenerationRequest]:
    sampling = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True)
    return [
        GenerationRequest(f"r{i}", "stories", tuple(built.tokenizer.encode(prompt)), sampling)
        for i, prompt in enumerate(PROMPTS)
    ]


def tokens(results: dict[str, Generated]) -> list[list[int]]:
    return [results[f"r{i}"].sequences[0].token_ids for i in range(len(results))]


@pytest.fixture(scope="module")
def expected(settings: EngineSettings) -> list[list[int]]:
    built = build_engine(settings)
    return tokens(generate(built.engine, requests(built)))


@pytest.fixture
def gang(settings: EngineSettings) -> Iterator[Callable[[int, int], BuiltEngine]]:
    started = []

    def start(pipeline: int, tensor: int) -> BuiltEngine:
        cut = dataclasses.replace(settings, parallel=ParallelConfig(pipeline, tensor))
        host = ProcessShardHost(cut.parallel)
        executor = start_gang(cut, host)
        started.append((executor, host))
        return build_engine(cut, gang=executor)

    yield start
    for executor, host in started:
        executor.close()
        host.stop()


@pytest.mark.parametrize(("pipeline", "tensor"), [(1, 2), (2, 1), (3, 1), (2, 2), (1, 4)])
def test_a_gang_gives_the_tokens_of_one_process(
    gang: Callable[[int, int], BuiltEngine],
    expected: list[list[int]],
    pipeline: int,
    tensor: int,
) -> None:
    built = gang(pipeline, tensor)
    assert tokens(generate(built.engine, requests(built))) == expected
    again = generate(built.engine, requests(built))
    assert tokens(again) == expected
    report = built.scheduler.report()
    assert report.num_free_blocks == report.num_blocks
