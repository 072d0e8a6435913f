"""A real fabric: client SDK, gRPC router, Ray Serve, engine and a real model."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from fabric.cli.launch import launched
from fabric.client import (
    AsyncClient,
    DeadlineExceeded,
    Generation,
    GroupState,
    InvalidRequest,
    ModelNotFound,
    ModelState,
    Overloaded,
    SequenceDelta,
    Unavailable,
)
from fabric.config import FabricConfig, parse_config
from fabric.core.request import GenerationRequest
from fabric.core.sampling import SamplingParams
from fabric.engine.build import build_engine
from fabric.engine.offline import generate

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]

MODEL = "stories"
PROMPTS = tuple(
    f"{start} {name}"
    for start in ("Once upon a time", "One day", "The dog", "In the park")
    for name in ("Lily", "Tom", "Ben", "Sue")
)
RECOVERY_S = 60.0


@pytest.fixture(scope="module")
def config(stories_path: Path, tmp_path_factory: pytest.TempPathFactory) -> FabricConfig:
    group = {"max_num_seqs": 16, "kv_cache": "4MB", "num_threads": 1}
    return parse_config(
        {
            "models": [{"id": MODEL, "source": str(stories_path), "dtype": "float32"}],
            "groups": [{"name": "g0", "models": [MODEL], **group}],
            "router": {"port": 0, "max_message": "1MB"},
            "cache_dir": str(tmp_path_factory.mktemp("cache")),
        },
        "test",
    )


@pytest.fixture(scope="module")
def target(config: FabricConfig) -> Iterator[str]:
    with launched(config, Console(quiet=True)) as address:
        yield address


@pytest.fixture(scope="module")
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


async def collect(client: AsyncClient, prompt: str, **options: float) -> Generation:
    stream = client.stream(
        MODEL, prompt, max_tokens=100, temperature=0.0, ignore_eos=True, **options
    )  # type: ignore[arg-type]
    return await stream.collect()


async def cancel_after(client: AsyncClient, prompt: str, num_tokens: int) -> list[int]:
    tokens: list[int] = []
    async with client.stream(
        MODEL, prompt, max_tokens=400, temperature=0.0, ignore_eos=True
    ) as stream:
        async for event in stream:
            if isinstance(event, SequenceDelta):
                tokens.extend(event.token_ids)
            if len(tokens) >= num_tokens:
                break
    return tokens


async def wait_until_idle(client: AsyncClient) -> None:
    """Wait until the group holds nothing; fails by the test's time limit if it leaks."""
    while True:
        status = await client.status()
        load = status.groups[0].load
        is_idle = load.num_running == 0 and load.num_waiting == 0
        if is_idle and load.num_free_blocks == load.num_blocks and status.num_inflight == 0:
            return
        await asyncio.sleep(0.05)


def group_pids() -> set[int]:
    """Process ids of device-group replicas that descend from this process."""
    pids = set()
    for entry in Path("/proc").iterdir():
        try:
            if b"group-g0" in (entry / "cmdline").read_bytes() and is_mine(int(entry.name)):
                pids.add(int(entry.name))
        except (OSError, ValueError):
            continue
    return pids


def is_mine(pid: int) -> bool:
    while pid > 1:
        if pid == os.getpid():
            return True
        pid = int((Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
    return False


async def test_sixteen_streams_with_cancels_and_deadlines_leave_nothing_behind(
    target: str, expected: dict[str, list[int]]
) -> None:
    async with AsyncClient(target) as client:
        cancelled = [cancel_after(client, prompt, 5) for prompt in PROMPTS[:8]]
        expiring = [collect(client, prompt, timeout_s=0.02) for prompt in PROMPTS[8:10]]
        whole = [collect(client, prompt) for prompt in PROMPTS[10:]]
        results = await asyncio.gather(*cancelled, *expiring, *whole, return_exceptions=True)
        await wait_until_idle(client)
    for prompt, tokens in zip(PROMPTS[:8], results[:8], strict=True):
        assert isinstance(tokens, list)
        assert tokens == expected[prompt][: len(tokens)]
    assert all(isinstance(error, DeadlineExceeded) for error in results[8:10]), results[8:10]
    for prompt, generation in zip(PROMPTS[10:], results[10:], strict=True):
        assert isinstance(generation, Generation), generation
        assert list(generation.sequences[0].token_ids) == expected[prompt]


async def test_bad_requests_are_refused_and_disturb_nobody(
    target: str, expected: dict[str, list[int]]
) -> None:
    async with AsyncClient(target) as client:
        good = asyncio.create_task(collect(client, PROMPTS[0]))
        bad = {
            "prompt": client.generate(MODEL, ""),
            "sampling.temperature": client.generate(MODEL, "a", temperature=-1.0),
            "sampling.n": client.generate(MODEL, "a", n=10_000),
            "stopping.stop": client.generate(MODEL, "a", stop=["x"] * 10_000),
            "prompt.token_ids": client.generate(MODEL, [1, 2, 99_999]),
        }
        for field, call in bad.items():
            with pytest.raises(InvalidRequest) as caught:
                await call
            assert caught.value.violations[0].field.startswith(field.split("[")[0])
        with pytest.raises(InvalidRequest, match="512"):
            await client.generate(MODEL, "word " * 1000)
        with pytest.raises(ModelNotFound, match="stories"):
            await client.generate("gpt-17", "a")
        with pytest.raises(Overloaded):
            await client.generate(MODEL, "x" * 2_000_000)
        assert list((await good).sequences[0].token_ids) == expected[PROMPTS[0]]
        await wait_until_idle(client)


async def test_a_killed_group_comes_back_and_serves_without_help(
    target: str, expected: dict[str, list[int]]
) -> None:
    async with AsyncClient(target) as client:
        before = (await client.status()).groups[0].epoch
        streams = [asyncio.create_task(cancel_after(client, p, 390)) for p in PROMPTS[:4]]
        while (await client.status()).groups[0].load.num_running < 4:
            await asyncio.sleep(0.005)
        (pid,) = group_pids()
        os.kill(pid, signal.SIGKILL)
        ended = await asyncio.gather(*streams, return_exceptions=True)
        for error in ended:
            assert isinstance(error, Unavailable)
            assert error.retry_after_s is not None
        assert (await client.status()).groups[0].state is GroupState.DOWN
        assert (await client.models())[0].state is ModelState.LOADING
        deadline = time.monotonic() + RECOVERY_S
        while (await client.models())[0].state is not ModelState.READY:
            assert time.monotonic() < deadline, "the group did not come back"
            await asyncio.sleep(0.1)
        assert (await client.status()).groups[0].epoch > before
        generation = await collect(client, PROMPTS[0])
        assert list(generation.sequences[0].token_ids) == expected[PROMPTS[0]]
        await wait_until_idle(client)
