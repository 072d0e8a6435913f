"""A gang over two of three Ray nodes: it streams, loses a node, waits, and comes back."""

import asyncio
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fabric.client import AsyncClient, GroupState, GroupStatus, RetryPolicy, Unavailable
from tests.e2e.live_fabric import (
    PROMPTS,
    cancel_after,
    collect,
    serving_gang,
    shard_pids,
    wait_until_idle,
)
from tests.e2e.ray_nodes import RayNodes

logger = logging.getLogger(__name__)

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

DETECTED_S = 3.0
RECOVERY_S = 120.0


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    """A head, and two nodes with two devices each."""
    with RayNodes() as nodes:
        nodes.add(2)
        nodes.add(2)
        yield nodes


@pytest.fixture(scope="module")
def served(
    nodes: RayNodes, stories_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The address of a served gang."""
    folder = tmp_path_factory.mktemp("nodes")
    ray = f'{{address: "{nodes.address}"}}'
    with serving_gang(folder, stories_path, ray, nodes.environment) as (address, _):
        yield address


async def state_of_gang(client: AsyncClient, state: GroupState, epoch: int = 0) -> GroupStatus:
    """Wait until the gang of a later epoch than this is in a state."""
    deadline = time.monotonic() + RECOVERY_S
    while True:
        group = (await client.status()).groups[0]
        if group.state is state and group.epoch > epoch:
            return group
        assert time.monotonic() < deadline, group
        await asyncio.sleep(0.05)


async def test_a_gang_over_two_nodes_waits_for_a_third_when_one_is_killed(
    nodes: RayNodes, served: str, expected: dict[str, list[int]]
) -> None:
    assert [len(shard_pids(raylet)) for raylet in nodes.raylets] == [2, 2]
    async with AsyncClient(served, retry=RetryPolicy(max_attempts=1)) as client:
        generations = await asyncio.gather(*(collect(client, prompt) for prompt in PROMPTS[:8]))
        for prompt, generation in zip(PROMPTS[:8], generations, strict=True):
            assert list(generation.sequences[0].token_ids) == expected[prompt]
        streams = [asyncio.create_task(cancel_after(client, p, 390)) for p in PROMPTS[:4]]
        while (group := (await client.status()).groups[0]).load.num_running < 4:
            await asyncio.sleep(0.005)
        nodes.kill(nodes.raylets[0])
        harmed_s = time.monotonic()
        for error in await asyncio.gather(*streams, return_exceptions=True):
            assert isinstance(error, Unavailable), error
        logger.info("noticed in %.2f s", time.monotonic() - harmed_s)
        assert time.monotonic() - harmed_s < DETECTED_S
        await state_of_gang(client, GroupState.DOWN)
        while "device" not in (await state_of_gang(client, GroupState.DOWN)).reason:
            await asyncio.sleep(0.1)
        reason = (await state_of_gang(client, GroupState.DOWN)).reason
        logger.info("after %.1f s: %s", time.monotonic() - harmed_s, reason)
        assert "4 x (0.5 CPU, 1 device)" in reason
        nodes.add(2)
        added_s = time.monotonic()
        await state_of_gang(client, GroupState.READY, group.epoch)
        logger.info("serves %.1f s after a node was added", time.monotonic() - added_s)
        generation = await collect(client, PROMPTS[0])
        assert list(generation.sequences[0].token_ids) == expected[PROMPTS[0]]
        await wait_until_idle(client)
    assert [len(shard_pids(raylet)) for raylet in nodes.raylets] == [2, 2]
