"""An engine that drives a gang of shard workers gives the tokens of one process."""

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fabric.core.clock import VirtualClock
from fabric.core.errors import (
    ConfigError,
    DeadlineExceeded,
    GroupError,
    RequestCancelled,
    SourceError,
)
from fabric.core.plan import ParallelConfig
from fabric.core.sampling import SamplingParams
from fabric.engine.build import BuiltEngine, build_engine
from fabric.engine.offline import Generated, generate
from fabric.engine.settings import EngineSettings, ParkingSettings
from fabric.engine.shard_host import ProcessShardHost, start_gang
from fabric.engine.shard_worker import ShardSettings
from fabric.scheduler.settings import SchedulerConfig
from tests.integration.gang_world import (
    PROMPTS,
    Gang,
    Layout,
    greedy,
    requests,
    start,
    stories_settings,
    tokens,
)
from tests.integration.test_engine_swapping import swap_at_every_step

pytestmark = pytest.mark.dist

LAYOUTS = [
    Layout(1, 2),
    Layout(1, 4),
    Layout(2, 1),
    Layout(3, 1),
    Layout(2, 2),
    Layout(2, 1, layer_split=(1, 4)),
    Layout(1, 2, hosts="ab"),
    Layout(1, 4, hosts="aabb"),
    Layout(3, 1, hosts="abc"),
    Layout(2, 2, hosts="aabb"),
    Layout(1, 2, is_threads=True),
    Layout(2, 2, is_threads=True, layer_split=(3, 2)),
]
SAMPLED = SamplingParams(max_tokens=24, temperature=0.9, top_p=0.9, top_k=50, seed=3, n=3)
WIDE = SamplingParams(max_tokens=24, temperature=1.1, seed=5, ignore_eos=True)
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def settings(stories_path: Path) -> EngineSettings:
    return stories_settings(stories_path)


@pytest.fixture(scope="module")
def alone(settings: EngineSettings) -> BuiltEngine:
    """The engine of one process."""
    return build_engine(settings)


@pytest.fixture(scope="module")
def prompts(alone: BuiltEngine) -> list[list[int]]:
    return [alone.tokenizer.encode(prompt) for prompt in PROMPTS]


@pytest.fixture(scope="module")
def expected(alone: BuiltEngine, prompts: list[list[int]]) -> list[list[list[int]]]:
    return tokens(generate(alone.engine, requests(prompts)))


@pytest.fixture(scope="module", params=LAYOUTS, ids=str)
def gang(request: pytest.FixtureRequest, settings: EngineSettings) -> Iterator[Gang]:
    started = start(settings, request.param)
    yield started
    started.stop()


def has_all_blocks(built: BuiltEngine) -> bool:
    report = built.scheduler.report()
    return report.num_free_blocks == report.num_blocks


@pytest.mark.parametrize("layout", [Layout(1, 2), Layout(2, 2), Layout(3, 1)], ids=str)
@pytest.mark.parametrize("tier", ["host_bytes", "disk_bytes"])
def test_swapping_everything_after_every_iteration_changes_no_token(
    settings: EngineSettings,
    expected: list[list[list[int]]],
    prompts: list[list[int]],
    layout: Layout,
    tier: str,
) -> None:
    parking = ParkingSettings(debug=True, delay_s=0.001, **{tier: 16 * 2**20})  # type: ignore[arg-type]
    worker = dataclasses.replace(settings.worker, parking=parking)
    scheduler = dataclasses.replace(settings.scheduler, preemption="swap")
    gang = start(dataclasses.replace(settings, worker=worker, scheduler=scheduler), layout)
    try:
        built = gang.engine()
        results = swap_at_every_step(built, requests(prompts, greedy(24)))
        assert tokens(results) == [[one[:24] for one in each] for each in expected]
        report = built.scheduler.report()
        assert report.num_preemptions >= len(PROMPTS) * 20
        assert (report.num_recomputed_tokens, report.num_failed_transfers) == (0, 0)
        assert has_all_blocks(built)
    finally:
        gang.stop()


def finish(built: BuiltEngine, results: dict[str, Generated]) -> None:
    """Step to the end, and take what was in flight for requests that are gone."""
    while built.engine.has_work:
        for output in built.engine.step():
            results[output.request_id].append(output)
    while built.engine.num_in_flight:
        assert built.engine.step() == []


def test_greedy_tokens_are_those_of_one_process_also_from_the_prefix_cache(
    gang: Gang, prompts: list[list[int]], expected: list[list[list[int]]]
) -> None:
    built = gang.engine()
    assert tokens(generate(built.engine, requests(prompts))) == expected
    again = generate(built.engine, requests(prompts))
    assert tokens(again) == expected
    assert sum(r.usage.cached_tokens for r in again.values() if r.usage) > 0
    assert has_all_blocks(built)


def test_prompts_in_small_chunks_give_the_same_tokens(
    gang: Gang, prompts: list[list[int]], expected: list[list[list[int]]]
) -> None:
    built = gang.engine(scheduler=SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=4))
    assert tokens(generate(built.engine, requests(prompts))) == expected
    assert has_all_blocks(built)


@pytest.mark.parametrize("sampling", [SAMPLED, WIDE], ids=["top", "whole"])
def test_sampled_tokens_are_those_of_one_process(
    gang: Gang, alone: BuiltEngine, prompts: list[list[int]], sampling: SamplingParams
) -> None:
    built = gang.engine()
    sampled = generate(built.engine, requests(prompts, sampling))
    assert tokens(sampled) == tokens(generate(alone.engine, requests(prompts, sampling)))
    assert has_all_blocks(built)


def test_log_probabilities_are_within_tolerance(
    gang: Gang, alone: BuiltEngine, prompts: list[list[int]]
) -> None:
    sampling = dataclasses.replace(greedy(16), logprobs=20)
    ours, theirs = (
        generate(engine.engine, requests(prompts, sampling)) for engine in (gang.engine(), alone)
    )
    for name in ours:
        pairs = zip(
            ours[name].sequences[0].logprobs, theirs[name].sequences[0].logprobs, strict=True
        )
        for our, their in pairs:
            by_token = {item.token_id: item.logprob for item in their.top}
            found = [abs(item.logprob - by_token[item.token_id]) for item in our.top[:19]]
            assert max(found) < TOLERANCE


def test_cancels_and_deadlines_in_mid_flight_free_all_blocks(
    gang: Gang, prompts: list[list[int]], expected: list[list[list[int]]]
) -> None:
    clock = VirtualClock()
    built = gang.engine(clock)
    pending = requests(prompts)
    pending[1] = dataclasses.replace(pending[1], timeout_s=1.0)
    results = {request.request_id: Generated() for request in pending}
    for request in pending:
        built.engine.add(request)
    for _ in range(12):
        for output in built.engine.step():
            results[output.request_id].append(output)
    built.engine.cancel("r0")
    clock.advance(2.0)
    finish(built, results)
    assert isinstance(results["r0"].error, RequestCancelled)
    assert isinstance(results["r1"].error, DeadlineExceeded)
    assert tokens(results)[2:] == expected[2:]
    assert has_all_blocks(built)


def test_traffic_is_what_the_formulas_say(settings: EngineSettings, alone: BuiltEngine) -> None:
    prompt, num_tokens = alone.tokenizer.encode(PROMPTS[4]), 20
    num_layers, hidden_size = 5, 64
    gang = start(settings, Layout(1, 2))
    try:
        built = gang.engine()
        generate(built.engine, requests([prompt], greedy(num_tokens)))
        report = built.engine.report()
    finally:
        gang.stop()
    # Twice a layer and once after the embedding; 8 bytes a rank for the likeliest token.
    num_sums = 2 * num_layers + 1
    num_computed = len(prompt) + num_tokens - 1
    assert report.num_collectives == num_sums * report.num_steps + num_tokens
    assert report.collective_bytes == num_sums * num_computed * hidden_size * 4 + 8 * num_tokens
    assert report.control_bytes > 0
    assert 0 < report.collective_s < report.execute_s


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parallel": ParallelConfig(1, 3)}, "parallel.tensor is 3"),
        ({"parallel": ParallelConfig(6, 1)}, "parallel.pipeline is 6"),
        ({"parallel": ParallelConfig(2, 1), "layer_split": (2, 2)}, "the layer split is"),
    ],
)
def test_what_cannot_be_cut_is_refused_in_the_shards_words_and_leaves_no_process(
    settings: EngineSettings, change: dict[str, object], message: str
) -> None:
    cut = dataclasses.replace(settings, **change)  # type: ignore[arg-type]
    host = ProcessShardHost(cut.parallel)
    start_s = time.monotonic()
    with pytest.raises(ConfigError, match=f"^{message}"):
        start_gang(cut, host)
    assert time.monotonic() - start_s < 10.0
    assert host.num_alive == 0


def test_a_source_that_is_missing_is_named(settings: EngineSettings) -> None:
    (model,) = settings.worker.models
    absent = dataclasses.replace(model, source="/nowhere/at/all")
    worker = dataclasses.replace(settings.worker, models=(absent,))
    cut = dataclasses.replace(settings, worker=worker, parallel=ParallelConfig(1, 2))
    host = ProcessShardHost(cut.parallel)
    with pytest.raises(SourceError, match="/nowhere/at/all"):
        start_gang(cut, host)
    assert host.num_alive == 0


def test_a_worker_that_ends_before_it_joins_is_noticed_at_once(settings: EngineSettings) -> None:
    class StillbornHost(ProcessShardHost):
        def start(self, settings: ShardSettings) -> None:
            super().start(dataclasses.replace(settings, driver=("127.0.0.1", 1)))

    cut = dataclasses.replace(settings, parallel=ParallelConfig(tensor=2))
    host = StillbornHost(cut.parallel)
    with pytest.raises(GroupError, match="did not start"):
        start_gang(cut, host)
    assert host.num_alive == 0
