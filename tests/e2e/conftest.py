"""One fabric for all end-to-end tests: client SDK, router, Ray Serve, engine and a real model."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from fabric.cli.launch import launched
from fabric.client import AsyncClient
from fabric.config import FabricConfig, parse_config
from fabric.core.request import GenerationRequest
from fabric.core.sampling import SamplingParams
from fabric.engine.build import build_engine
from fabric.engine.offline import generate
from tests.e2e.live_fabric import MODEL, PROMPTS


@pytest.fixture(scope="package")
def config(stories_path: Path, tmp_path_factory: pytest.TempPathFactory) -> FabricConfig:
    group = {"max_num_seqs": 16, "kv_cache": "4MB", "num_threads": 1}
    return parse_config(
        {
            "models": [{"id": MODEL, "source": str(stories_path), "dtype": "float32"}],
            "groups": [{"name": "g0", "models": [MODEL], **group}],
            "router": {"port": 0, "metrics_port": 0},
            "cache_dir": str(tmp_path_factory.mktemp("cache")),
        },
        "test",
    )


@pytest.fixture(scope="package")
def target(config: FabricConfig) -> Iterator[str]:
    with launched(config, Console(quiet=True)) as address:
        yield address


@pytest.fixture
async def client(target: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(target) as client:
        yield client


@pytest.fixture(scope="package")
def expected(config: FabricConfig) -> dict[str, list[int]]:
    """What the offline engine makes of each prompt, one at a time."""
    built = build_engine(config.engine_settings(config.groups[0]))
    tokens = {}
    for prompt in PROMPTS:
        request = GenerationRequest(
            prompt,
            MODEL,
            tuple(built.tokenizer.encode(prompt)),
            SamplingParams(max_tokens=100, temperature=0.0, ignore_eos=True),
        )
        tokens[prompt] = generate(built.engine, [request])[prompt].sequences[0].token_ids
    return tokens
