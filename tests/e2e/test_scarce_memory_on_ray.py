"""Three models where two fit take turns on a device, and people move them while streams go on."""

import asyncio
import logging
import random
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from fabric.client import AsyncClient, Generation, Residence, WeightState
from fabric.models.config import ModelConfig
from tests.e2e.live_fabric import PROMPTS, serving
from tests.e2e.many_models import (
    Asked,
    Expected,
    Served,
    World,
    ask,
    check_memory,
    image_folder,
    said_alone,
    streaming,
)
from tests.unit.tiny_models import TINY, random_tensors, save_folder

logger = logging.getLogger(__name__)

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]

COLD, HOST, RESIDENT = WeightState.COLD, WeightState.HOST, WeightState.RESIDENT
# 26 MB of weights.
MEDIUM = TINY | {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
}
MODELS = ("a", "b", "c")
NUM_TOKENS = 32
NUM_REQUESTS, RATE_PER_S, SEED = 40, 10.0, 7
STEERED_S = 60.0


@pytest.fixture(scope="module")
def world(stories_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Models of other weights each."""
    folder = tmp_path_factory.mktemp("medium")
    models = {}
    for seed, name in enumerate(MODELS):
        tensors = random_tensors(ModelConfig.from_hf(MEDIUM), seed)
        path = save_folder(folder / name, MEDIUM, tensors)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(stories_path / file, path)
        models[name] = {"source": str(path), "dtype": "float32"}
    with image_folder() as images:
        yield World(models, folder, images)


@pytest.fixture(scope="module")
def expected(world: World) -> Expected:
    """What each model says alone; host memory then forgets them."""
    asked: dict[Asked, int] = {
        (model, prompt): NUM_TOKENS
        for offset, model in enumerate(MODELS)
        for prompt in PROMPTS[offset : offset + 4]
    }
    with said_alone(world, asked) as tokens:
        return tokens


@pytest.fixture(scope="module")
def served(world: World, expected: Expected) -> Iterator[Served]:
    """A fabric with room for two of the models on the device, and in host memory."""
    memory = {"memory": "64MB", "weights": {"host": "60MB", "dir": str(world.images)}}
    config = world.write({"name": "g0", "models": list(MODELS), **memory})
    with serving(config) as (target, pid):
        yield Served(target, pid)


@pytest.fixture
async def client(served: Served) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(served.target) as client:
        (load,) = (group.load for group in (await client.status()).groups)
        weights = sorted(model.weight_bytes for model in load.models)
        assert sum(weights[1:]) < load.num_slabs * load.slab_bytes < sum(weights)
        yield client
        await check_memory(client)


async def move(
    client: AsyncClient,
    state: WeightState | None,
    pinned: bool | None = None,
    *,
    model: str = "c",
    timeout_s: float = 20.0,
) -> Residence:
    (residence,) = await client.set_residence(model, state, pinned, timeout_s=timeout_s)
    return residence


async def test_the_first_token_waits_for_weights_only_where_they_are_not_on_the_device(
    client: AsyncClient, expected: Expected
) -> None:
    load_s = {}
    for state in (COLD, HOST, RESIDENT):
        residence = await move(client, state)
        assert (residence.state, residence.error) == (state, "")
        answer = await ask(client, "c", PROMPTS[2], NUM_TOKENS)
        assert list(answer.sequences[0].token_ids) == expected["c", PROMPTS[2]]
        load_s[state] = answer.timing.load_s
        logger.info("%s: first token in %.1f ms", state, 1e3 * answer.timing.ttft_s)
    assert load_s[COLD] > 0.0
    assert load_s[HOST] > 0.0
    assert load_s[RESIDENT] == 0.0


async def test_an_open_load_of_more_models_than_fit_is_answered_to_the_last_request(
    client: AsyncClient, expected: Expected
) -> None:
    draw = random.Random(SEED)
    await move(client, COLD)
    tasks = []
    for _ in range(NUM_REQUESTS):
        await asyncio.sleep(draw.expovariate(RATE_PER_S))
        asked, num_tokens = draw.choice(list(expected)), draw.randint(4, NUM_TOKENS)
        tasks.append((asked, asyncio.create_task(ask(client, *asked, num_tokens))))
    waited_s = []
    for asked, task in tasks:
        answer: Generation = await task
        tokens = list(answer.sequences[0].token_ids)
        assert tokens == expected[asked][: len(tokens)]
        waited_s.append(answer.timing.load_s)
    assert sum(seconds > 0.0 for seconds in waited_s) > 1
    (group,) = (await client.status()).groups
    assert all(model.num_loads > 0 for model in group.load.models)


async def test_models_are_moved_and_pinned_while_streams_of_all_go_on(
    client: AsyncClient, served: Served, expected: Expected
) -> None:
    async with streaming(served.target, expected) as streams, asyncio.timeout(STEERED_S):
        for model in MODELS:
            await streams.more()
            pinned = await move(client, RESIDENT, True, model=model)
            assert (pinned.state, pinned.pinned, pinned.error) == (RESIDENT, True, "")
            await streams.more()
            assert not (await move(client, None, False, model=model)).pinned
            for state in (HOST, COLD):
                # They leave, and come back for the next stream: nobody may see them gone.
                await move(client, state, model=model, timeout_s=0.5)
            loaded = await move(client, RESIDENT, model=model)
            # The others have streams, too: they may have its place before anybody looks.
            has_left = "came to the device, and left it again" in loaded.error
            assert has_left or (loaded.state, loaded.error) == (RESIDENT, "")
        await streams.more()
    assert streams.failures == []
    for model in MODELS:
        assert (await move(client, COLD, model=model)).state is COLD
