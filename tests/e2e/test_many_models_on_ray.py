"""Real models and small ones share device groups, and each says what it says alone."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator

import pytest

from fabric.client import AsyncClient, Unavailable
from fabric.models.sources import LocalModel
from tests.e2e.live_fabric import PROMPTS, group_pid, serving
from tests.e2e.many_models import (
    Asked,
    Expected,
    Section,
    Served,
    World,
    ask_all,
    check_memory,
    image_folder,
    said_alone,
    streaming,
)

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

LARGE, SMALL = ("qwen", "smollm2"), ("s0", "s1", "s2")
GROUPS: dict[str, list[Section]] = {
    "one group": [{"name": "g0", "models": [*SMALL, *LARGE], "kv_cache": "96MB"}],
    # One model is on both.
    "two groups": [
        {"name": "g0", "models": ["smollm2", "s0", "s1"], "kv_cache": "48MB"},
        {"name": "g1", "models": ["qwen", "s1", "s2"], "kv_cache": "48MB"},
    ],
}
NUM_TOKENS = {**dict.fromkeys(LARGE, 12), **dict.fromkeys(SMALL, 48)}
NUM_PROMPTS = {**dict.fromkeys(LARGE, 2), **dict.fromkeys(SMALL, 4)}
RECOVERY_S = 90.0


@pytest.fixture(scope="module")
def world(
    smollm2_local: LocalModel,
    qwen2_local: LocalModel,
    stories_path: object,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[World]:
    def section(path: object, dtype: str) -> Section:
        return {"source": str(path), "dtype": dtype, "max_model_len": 512}

    models = {
        "smollm2": section(smollm2_local.path, "bfloat16"),
        "qwen": section(qwen2_local.path, "bfloat16"),
        **{name: section(stories_path, "float32") for name in SMALL},
    }
    with image_folder() as images:
        yield World(models, tmp_path_factory.mktemp("models"), images)


@pytest.fixture(scope="module")
def expected(world: World) -> Iterator[Expected]:
    """What each model says alone to prompts of its own."""
    asked: dict[Asked, int] = {}
    for offset, model in enumerate(world.models):
        for prompt in PROMPTS[offset : offset + NUM_PROMPTS[model]]:
            asked[model, prompt] = NUM_TOKENS[model]
    with said_alone(world, asked) as tokens:
        yield tokens


@pytest.fixture(scope="module", params=list(GROUPS))
def served(request: pytest.FixtureRequest, world: World, expected: Expected) -> Iterator[Served]:
    with serving(world.write(*GROUPS[request.param])) as (target, pid):
        yield Served(target, pid)


@pytest.fixture
async def client(served: Served) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(served.target) as client:
        yield client


async def test_streams_of_all_models_at_once_are_those_of_each_model_alone(
    client: AsyncClient, expected: Expected
) -> None:
    answers = await ask_all(client, expected)
    groups = {group.name for group in (await client.status()).groups}
    assert {answer.timing.group for answer in answers} == groups
    await check_memory(client)


@pytest.mark.parametrize("served", ["two groups"], indirect=True)
async def test_a_killed_group_ends_its_own_streams_and_all_models_answer_again(
    served: Served, client: AsyncClient, expected: Expected
) -> None:
    async with streaming(served.target, expected) as streams, asyncio.timeout(RECOVERY_S):
        await streams.more()
        assert not streams.failures
        os.kill(group_pid(served.pid, "g0"), signal.SIGKILL)
        while not {"smollm2", "s0"} <= {model for model, _ in streams.failures}:
            await asyncio.sleep(0.01)
        await streams.more()
    assert not {"qwen", "s2"} & {model for model, _ in streams.failures}
    for _, error in streams.failures:
        assert isinstance(error, Unavailable)
        assert error.retry_after_s is not None
    await check_memory(client)
