"""Blocks leave the device and come back in every executor, and nobody notices in the tokens."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fabric.core.errors import GroupError
from fabric.engine.build import BuiltEngine, build_engine
from fabric.engine.executor import ReadyExecutor
from fabric.engine.offline import generate
from fabric.engine.settings import EngineSettings, ParkingSettings
from fabric.engine.shard_host import ProcessShardHost, start_gang
from fabric.kv.transfer import (
    BlockOrders,
    Direction,
    Tier,
    Transfer,
    TransferResult,
    WorkerOrders,
)
from tests.integration.gang_world import (
    PROMPTS,
    Gang,
    Layout,
    requests,
    start,
    stories_settings,
    tokens,
)

pytestmark = pytest.mark.dist

NUM_PARKED = 100
TIMEOUT_S = 20.0
LAYOUTS = [Layout(is_threads=True), Layout(1, 2), Layout(2, 1), Layout(1, 2, is_threads=True)]


@pytest.fixture(scope="module")
def settings(stories_path: Path, tmp_path_factory: pytest.TempPathFactory) -> EngineSettings:
    parking = ParkingSettings(
        host_bytes=4 * 2**20,
        disk_bytes=32 * 2**20,
        disk_dir=tmp_path_factory.mktemp("disk"),
        debug=True,
    )
    stories = stories_settings(stories_path)
    return replace(stories, worker=replace(stories.worker, parking=parking))


@pytest.fixture(scope="module")
def alone(settings: EngineSettings) -> BuiltEngine:
    parking = ParkingSettings()
    return build_engine(replace(settings, worker=replace(settings.worker, parking=parking)))


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


def move(executor: ReadyExecutor, *orders: BlockOrders) -> None:
    executor.move(WorkerOrders(blocks=orders))


def transfer(executor: ReadyExecutor, moved: Transfer) -> TransferResult:
    move(executor, BlockOrders(transfers=(moved,)))
    (result,) = executor.take_finished(TIMEOUT_S)
    assert isinstance(result, TransferResult)
    return result


@pytest.mark.parametrize("tier", list(Tier))
def test_blocks_that_were_away_hold_what_they_held(
    gang: Gang, prompts: list[list[int]], expected: list[list[list[int]]], tier: Tier
) -> None:
    built, executor = gang.engine(), gang.executor
    (model,) = executor.models
    assert tokens(generate(built.engine, requests(prompts))) == expected
    assert model.space.num_slots(tier) >= NUM_PARKED
    pairs = tuple((block, NUM_PARKED - 1 - block) for block in range(NUM_PARKED))
    out = transfer(executor, Transfer(1_000_001, Direction.OUT, tier, pairs))
    assert (out.number, out.error) == (1_000_001, "")
    assert out.num_bytes == NUM_PARKED * model.space.block_bytes
    move(executor, BlockOrders(poisoned=tuple(range(NUM_PARKED))))
    back = transfer(executor, Transfer(1_000_002, Direction.IN, tier, pairs))
    assert (back.number, back.error) == (1_000_002, "")
    again = generate(built.engine, requests(prompts))
    assert tokens(again) == expected
    assert sum(r.usage.cached_tokens for r in again.values() if r.usage) > 0


def test_a_slot_that_was_never_written_fails_and_the_gang_goes_on(
    gang: Gang, prompts: list[list[int]], expected: list[list[list[int]]]
) -> None:
    # The profile that engines measure at their start uses the first slots.
    slot = gang.executor.models[0].space.num_disk_slots - 1
    result = transfer(gang.executor, Transfer(1_000_003, Direction.IN, Tier.DISK, ((0, slot),)))
    assert result.error.endswith(f"slot {slot} for block 0 is not what was stored")
    built = gang.engine()
    assert tokens(generate(built.engine, requests(prompts))) == expected


def test_a_lost_worker_is_raised_to_who_waits_for_transfers(settings: EngineSettings) -> None:
    cut = Layout(1, 2).cut(settings)
    host = ProcessShardHost(cut.parallel)
    executor = start_gang(cut, host)
    try:
        host.stop()
        with pytest.raises(GroupError):
            executor.take_finished(TIMEOUT_S)
    finally:
        executor.close()
