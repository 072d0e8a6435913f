"""Plans on a Ray cluster that runs already: bounded by its devices, and gone when the fabric is."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from fabric.client import AsyncClient, FailedPrecondition, Generation
from tests.e2e.live_fabric import MODEL, PROMPTS, collect
from tests.e2e.ray_nodes import RayNodes

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

COMMAND = [sys.executable, "-c", "import sys; from fabric.cli import main; sys.exit(main())"]
# Prints the names of all Serve applications of the cluster.
APPLICATIONS = """
import ray, sys
from ray import serve
ray.init(sys.argv[1], namespace="serve", logging_level="ERROR", log_to_driver=False)
print(*sorted(serve.status().applications))
"""


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    """A head, and a node with three devices."""
    with RayNodes() as nodes:
        nodes.add(3)
        yield nodes


def plan(source: Path, name: str, pipeline: int) -> dict[str, object]:
    group = {
        "name": name,
        "models": [MODEL],
        "parallel": {"pipeline": pipeline},
        "kv_cache": "4MB",
        "num_threads": 1,
        "num_cpus": 0.3,
        "resources": {"device": 1},
    }
    models = [{"id": MODEL, "source": str(source), "dtype": "float32"}]
    return {"models": models, "groups": [group]}


def applications(nodes: RayNodes) -> list[str]:
    command = [sys.executable, "-c", APPLICATIONS, nodes.address]
    return subprocess.check_output(command, env=nodes.environment, text=True).split()


async def test_a_plan_without_devices_fails_and_another_moves_and_all_of_it_ends(
    nodes: RayNodes, stories_path: Path, tmp_path: Path, expected: dict[str, list[int]]
) -> None:
    config = tmp_path / "fabric.yaml"
    rest = {"router": {"port": 0}, "ray": {"address": nodes.address}, "cache_dir": str(tmp_path)}
    config.write_text(yaml.safe_dump({**plan(stories_path, "g0", 1), **rest}))
    command = [*COMMAND, "serve", str(config)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=nodes.environment
    ) as process:
        assert process.stdout is not None
        target = process.stdout.readline().split(" at ")[1].split(";")[0]
        async with AsyncClient(target) as client:
            too_many = yaml.safe_dump(plan(stories_path, "g1", 4))
            with pytest.raises(FailedPrecondition, match=r"waits for nodes with .* device"):
                await apply(client, too_many, 5.0)
            gang = yaml.safe_dump(plan(stories_path, "g2", 2))
            moving = asyncio.create_task(apply(client, gang, 60.0))
            answers: list[Generation] = []
            while not moving.done():
                answers.append(await collect(client, PROMPTS[0]))
            await moving
            answers.append(await collect(client, PROMPTS[0]))
            assert [group.name for group in (await client.status()).groups] == ["g2"]
        assert all(
            list(answer.sequences[0].token_ids) == expected[PROMPTS[0]] for answer in answers
        )
        found = await asyncio.to_thread(applications, nodes)
        assert found == ["fabric-group-g2", "fabric-router"]
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
    assert await asyncio.to_thread(applications, nodes) == []


async def apply(client: AsyncClient, text: str, timeout_s: float) -> None:
    async for _ in client.apply_plan(text, timeout_s=timeout_s):
        pass
