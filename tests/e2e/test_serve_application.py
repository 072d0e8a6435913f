"""A fabric as one Serve application, as deploy/serve-config.yaml describes one."""

import asyncio
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from fabric.client import AsyncClient, RetryPolicy
from tests.e2e.live_fabric import MODEL, PROMPTS, collect
from tests.e2e.ray_nodes import RayNodes

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
START_S = 120.0


@pytest.fixture(scope="module")
def target(stories_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The router of the example's application, with another model and another port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("application")
    tree = yaml.safe_load((DEPLOY / "serve-config.yaml").read_text())
    arguments = tree["applications"][0]["args"]
    arguments["models"] = [{"id": MODEL, "source": str(stories_path), "dtype": "float32"}]
    arguments["groups"][0] |= {
        "models": [MODEL],
        "parallel": {"pipeline": 2, "tensor": 1},
        "kv_cache": "4MB",
        "num_threads": 1,
        "num_cpus": 0.5,
    }
    arguments["router"] = {"host": "127.0.0.1", "port": port}
    arguments["cache_dir"] = str(folder)
    path = folder / "serve-config.yaml"
    path.write_text(yaml.safe_dump(tree))
    with RayNodes() as nodes:
        nodes.add(2)
        command = [sys.executable, "-m", "ray.serve.scripts", "run", str(path)]
        with subprocess.Popen(
            [*command, "--address", nodes.address], env=nodes.environment
        ) as process:
            yield f"127.0.0.1:{port}"
            process.send_signal(signal.SIGINT)
            process.wait(timeout=60)


async def test_the_application_answers_through_its_own_router(
    target: str, expected: dict[str, list[int]]
) -> None:
    async with AsyncClient(
        target, retry=RetryPolicy(max_attempts=1000, max_backoff_s=0.2)
    ) as client:
        async with asyncio.timeout(START_S):
            generation = await collect(client, PROMPTS[0])
    assert list(generation.sequences[0].token_ids) == expected[PROMPTS[0]]
