"""Models that share workers give the tokens that each gives alone, while weights come and go."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fabric.core.weights import WeightMove, WeightResult
from fabric.engine.local_executor import LocalExecutor
from fabric.engine.settings import EngineSettings, ParkingSettings
from fabric.engine.worker import Worker
from fabric.kv.transfer import (
    BlockOrders,
    Direction,
    Tier,
    Transfer,
    TransferResult,
    WorkerOrders,
)
from tests.integration.driven_models import Driver, Tokens, settings_of, small_model
from tests.integration.gang_layouts import Layout, start_workers

pytestmark = pytest.mark.usefixtures("one_torch_thread")

STORIES, SMALL, AGAIN = 0, 1, 2
PROMPTS = {
    STORIES: ([1, 403, 407, 261], [1, 410], [1, 385, 12, 99, 301, 17, 44, 8, 200, 31]),
    SMALL: ([5, 17, 80, 3], [90, 1, 2, 3, 4, 5, 6, 7, 8]),
    AGAIN: ([1, 300, 2],),
}
NUM_TOKENS = 24
WEIGHTS = "model.safetensors"
WHOLE = Layout(is_threads=True)
LAYOUTS = [
    WHOLE,
    Layout(1, 2, is_threads=True),
    Layout(2, 1, is_threads=True),
    pytest.param(Layout(1, 2), marks=pytest.mark.dist),
    pytest.param(Layout(2, 1), marks=pytest.mark.dist),
]


@pytest.fixture(scope="module")
def models(stories_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """stories260K twice, and between them a model with blocks and weights of other sizes."""
    small = small_model(tmp_path_factory.mktemp("small"))
    return {"stories": stories_path, "small": small, "again": stories_path}


@pytest.fixture(scope="module")
def alone(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[int, Tokens]:
    """What each model says in a worker of its own."""
    tokens = {}
    for place, (name, path) in enumerate(models.items()):
        settings = settings_of({name: path}, tmp_path_factory.mktemp(name), slab_bytes=None)
        executor = LocalExecutor(Worker(settings.worker))
        driver = Driver(executor)
        driver.load(0)
        tokens[place] = driver.generate({0: PROMPTS[place]}, NUM_TOKENS)[0]
        executor.close()
    return tokens


def parking(folder: Path) -> ParkingSettings:
    return ParkingSettings(host_bytes=3 * 2**18, disk_bytes=3 * 2**20, disk_dir=folder, debug=True)


@pytest.fixture
def settings(models: dict[str, Path], tmp_path: Path) -> EngineSettings:
    return settings_of(models, tmp_path, parking=parking(tmp_path))


@pytest.fixture
def local(settings: EngineSettings) -> Iterator[Driver]:
    """A driver of one worker; no weights are loaded."""
    executor = LocalExecutor(Worker(settings.worker))
    yield Driver(executor)
    executor.close()


@pytest.fixture(scope="module", params=LAYOUTS, ids=str)
def driver(
    request: pytest.FixtureRequest,
    models: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Driver]:
    """A driver of workers in every layout, which have loaded the first two models."""
    folder = tmp_path_factory.mktemp("shared")
    settings = settings_of(models, folder, parking=parking(folder))
    executor, stop = start_workers(settings, request.param)
    started = Driver(executor)
    started.load(STORIES, SMALL)
    yield started
    stop()


def of(prompts: dict[int, object], *models: int) -> dict:
    return {model: prompts[model] for model in models}


def test_batches_of_two_models_by_turns_give_the_tokens_of_each_alone(
    driver: Driver, alone: dict[int, Tokens]
) -> None:
    tokens = driver.generate(of(PROMPTS, STORIES, SMALL), NUM_TOKENS)
    assert tokens == of(alone, STORIES, SMALL)


def test_a_model_that_left_and_came_back_says_the_same_as_before(
    driver: Driver, alone: dict[int, Tokens]
) -> None:
    driver.order(WeightMove.EVICT, STORIES)
    slabs = tuple(range(driver.executor.memory.num_slabs))
    driver.executor.move(WorkerOrders(punched=slabs))
    driver.load(AGAIN)
    tokens = driver.generate(of(PROMPTS, SMALL, AGAIN), NUM_TOKENS)
    assert tokens == of(alone, SMALL, AGAIN)
    driver.order(WeightMove.EVICT, AGAIN)
    driver.load(STORIES)
    tokens = driver.generate(of(PROMPTS, STORIES, SMALL), NUM_TOKENS)
    assert tokens == of(alone, STORIES, SMALL)


def test_a_model_runs_as_soon_as_its_first_layers_are_there(
    driver: Driver, alone: dict[int, Tokens]
) -> None:
    driver.order(WeightMove.EVICT, STORIES)
    number = driver.order(WeightMove.LOAD, STORIES)
    first = driver.take()[0]
    assert isinstance(first, WeightResult)
    assert (first.number, first.error, first.is_last) == (number, "", False)
    tokens = driver.generate(of(PROMPTS, STORIES, SMALL), NUM_TOKENS)
    assert tokens == of(alone, STORIES, SMALL)


@pytest.mark.parametrize("tier", list(Tier))
def test_blocks_of_two_models_are_parked_and_come_back(driver: Driver, tier: Tier) -> None:
    pairs = tuple((block, 19 - block) for block in range(5, 20))
    for direction in (Direction.OUT, Direction.IN):
        transfers = [
            Transfer(next(driver.numbers), direction, tier, pairs) for _ in (STORIES, SMALL)
        ]
        orders = [BlockOrders((), (moved,), place) for place, moved in enumerate(transfers)]
        driver.executor.move(WorkerOrders(blocks=tuple(orders)))
        waiting = {moved.number: place for place, moved in enumerate(transfers)}
        while waiting:
            for result in driver.take():
                if not isinstance(result, TransferResult):
                    continue
                block_bytes = driver.executor.models[waiting.pop(result.number)].space.block_bytes
                assert (result.error, result.num_bytes) == ("", len(pairs) * block_bytes)


def test_weights_come_from_host_memory_once_they_are_fetched(
    local: Driver, settings: EngineSettings, alone: dict[int, Tokens]
) -> None:
    fetched = local.wait(local.order(WeightMove.FETCH, SMALL))
    assert (fetched.error, fetched.num_bytes > 0) == ("", True)
    folder = settings.worker.host_weight_dir
    assert folder is not None
    assert len(list(folder.iterdir())) == 1
    local.load(SMALL)
    assert local.generate(of(PROMPTS, SMALL), NUM_TOKENS) == of(alone, SMALL)
    local.order(WeightMove.DROP, SMALL)
    assert not list(folder.iterdir())
    assert local.generate(of(PROMPTS, SMALL), NUM_TOKENS) == of(alone, SMALL)


def test_moves_are_made_in_their_order_while_another_model_runs(
    local: Driver, alone: dict[int, Tokens]
) -> None:
    local.load(STORIES)
    numbers = [local.order(WeightMove.LOAD, model) for model in (SMALL, AGAIN)]
    assert local.generate(of(PROMPTS, STORIES), NUM_TOKENS) == of(alone, STORIES)
    results: list[WeightResult] = []
    while len(results) < 4:
        results += [result for result in local.take() if isinstance(result, WeightResult)]
    found = [(result.number, result.is_last) for result in results]
    assert found == [(number, is_last) for number in numbers for is_last in (False, True)]
    assert local.generate(PROMPTS, NUM_TOKENS) == alone


def test_workers_know_their_models_before_they_load_them(
    local: Driver, settings: EngineSettings
) -> None:
    for model, hosted in zip(settings.worker.models, local.executor.models, strict=True):
        assert hosted.card.model == model.model
        assert hosted.weight_bytes >= 4 * hosted.card.num_parameters * 0.9
        assert hosted.space.block_bytes == hosted.block_bytes
        assert hosted.space.num_host_slots >= (2**18 - 2**13) // hosted.block_bytes
    assert [hosted.block_bytes for hosted in local.executor.models] == [5120, 1536, 5120]


@pytest.mark.parametrize(
    "layout", [WHOLE, pytest.param(Layout(1, 2), marks=pytest.mark.dist)], ids=str
)
def test_a_load_that_fails_is_said_and_the_next_try_may_work(
    layout: Layout, models: dict[str, Path], tmp_path: Path, alone: dict[int, Tokens]
) -> None:
    small = small_model(tmp_path / "other")
    settings = settings_of(models | {"small": small}, tmp_path)
    executor, stop = start_workers(settings, layout)
    driver = Driver(executor)
    driver.load(STORIES)
    stamp = (small / WEIGHTS).stat()
    os.utime(small / WEIGHTS, ns=(0, 0))
    result = driver.wait(driver.order(WeightMove.LOAD, SMALL))
    assert "has changed since the model was opened" in result.error
    assert driver.generate(of(PROMPTS, STORIES), NUM_TOKENS) == of(alone, STORIES)
    os.utime(small / WEIGHTS, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    driver.load(SMALL)
    tokens = driver.generate(of(PROMPTS, STORIES, SMALL), NUM_TOKENS)
    assert tokens == of(alone, STORIES, SMALL)
    stop()


def test_a_worker_that_closes_gives_a_load_up(settings: EngineSettings) -> None:
    executor = LocalExecutor(Worker(replace(settings.worker, parking=ParkingSettings())))
    driver = Driver(executor)
    for model in (STORIES, SMALL, AGAIN):
        driver.order(WeightMove.LOAD, model)
    executor.close()
    folder = settings.worker.host_weight_dir
    assert folder is not None
    assert not folder.exists() or not list(folder.iterdir())
