"""A model cut over four shard actors, two stages of two tensor ranks, behind `fabric serve`."""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fabric.client import AsyncClient, GroupState, Unavailable
from tests.e2e.live_fabric import (
    PROMPTS,
    cancel_after,
    collect,
    serving_gang,
    shard_pids,
    wait_until_idle,
)

logger = logging.getLogger(__name__)

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

DETECTED_S = 3.0
RECOVERY_S = 90.0


@pytest.fixture(scope="module")
def served(
    stories_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, int]]:
    """The address of a served gang, and the process id of `fabric serve`."""
    folder = tmp_path_factory.mktemp("gang")
    with serving_gang(folder, stories_path, "{resources: {device: 4}}") as gang:
        yield gang


async def wait_for_new_gang(client: AsyncClient, epoch: int) -> None:
    deadline = time.monotonic() + RECOVERY_S
    while True:
        group = (await client.status()).groups[0]
        if group.epoch > epoch and group.state is GroupState.READY:
            return
        assert time.monotonic() < deadline, "the gang did not come back"
        await asyncio.sleep(0.1)


async def test_a_gang_streams_the_tokens_of_one_process(
    served: tuple[str, int], expected: dict[str, list[int]]
) -> None:
    async with AsyncClient(served[0]) as client:
        generations = await asyncio.gather(*(collect(client, prompt) for prompt in PROMPTS[:8]))
        await wait_until_idle(client)
    for prompt, generation in zip(PROMPTS[:8], generations, strict=True):
        assert list(generation.sequences[0].token_ids) == expected[prompt]


@pytest.mark.parametrize("harm", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_lost_shard_is_noticed_at_once_and_the_gang_comes_back(
    served: tuple[str, int],
    expected: dict[str, list[int]],
    harm: signal.Signals,
) -> None:
    async with AsyncClient(served[0]) as client:
        epoch = (await client.status()).groups[0].epoch
        streams = [asyncio.create_task(cancel_after(client, p, 390)) for p in PROMPTS[:4]]
        while (await client.status()).groups[0].load.num_running < 4:
            await asyncio.sleep(0.005)
        os.kill(shard_pids(served[1])[-1], harm)
        harmed_s = time.monotonic()
        for error in await asyncio.gather(*streams, return_exceptions=True):
            assert isinstance(error, Unavailable)
        detected_s = time.monotonic() - harmed_s
        await wait_for_new_gang(client, epoch)
        assert detected_s < DETECTED_S
        served_s = time.monotonic() - harmed_s
        logger.info("%s: noticed in %.1f s, serves in %.1f s", harm.name, detected_s, served_s)
        generation = await collect(client, PROMPTS[0])
        assert list(generation.sequences[0].token_ids) == expected[PROMPTS[0]]
        await wait_until_idle(client)
