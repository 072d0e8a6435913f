"""A fabric moves from plan to plan while its models' streams go on."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from fabric.client import (
    Aborted,
    AsyncClient,
    FailedPrecondition,
    InvalidRequest,
    ModelNotFound,
    PlanProgress,
    RequestError,
    RetryPolicy,
    StepState,
)
from fabric.config import parse_config
from fabric.core.request import GenerationRequest
from fabric.core.sampling import SamplingParams
from fabric.engine.build import build_engine
from fabric.engine.offline import generate
from tests.e2e.live_fabric import descendants
from tests.e2e.plan_load import DTYPES, NUM_TOKENS, PROMPTS, Load, Plans, group

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

COMMAND = [sys.executable, "-c", "import sys; from fabric.cli import main; sys.exit(main())"]
RESTARTED_S = 60.0


@pytest.fixture(scope="module")
def plans(stories_path: Path) -> Plans:
    return Plans(str(stories_path))


@pytest.fixture(scope="module")
def expected(plans: Plans, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list]]:
    """What an engine of each model alone makes of each prompt."""
    cache = {"cache_dir": str(tmp_path_factory.mktemp("alone"))}
    tokens: dict[str, dict[str, list]] = {}
    for model in DTYPES:
        config = parse_config({**plans.plan(group("g0", model)), **cache}, "test")
        built = build_engine(config.engine_settings(config.groups[0]))
        tokens[model] = {}
        for prompt in PROMPTS:
            sampling = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True)
            encoded = tuple(built.tokenizer.encode(prompt))
            request = GenerationRequest(prompt, model, encoded, sampling)
            tokens[model][prompt] = generate(built.engine, [request])[prompt].sequences[0].token_ids
    return tokens


@dataclass(frozen=True)
class Served:
    """A running `fabric serve`."""

    target: str
    pid: int


@pytest.fixture(scope="module")
def served(plans: Plans, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A fabric whose file says something else than the plan that it is given."""
    folder = tmp_path_factory.mktemp("apply")
    config, plan = folder / "fabric.yaml", folder / "plan.yaml"
    rest = {"router": {"port": 0}, "cache_dir": str(folder)}
    config.write_text(yaml.safe_dump({**plans.plan(group("other", "a")), **rest}))
    plan.write_text(plans.together)
    command = [*COMMAND, "serve", str(config), "--plan", str(plan)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("serving a, b at "), line
        yield Served(line.split(" at ")[1].split(";")[0], process.pid)
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


@pytest.fixture
async def client(served: Served, plans: Plans) -> AsyncIterator[AsyncClient]:
    """Each test begins with both models in one group; nothing is tried twice."""
    async with AsyncClient(served.target, retry=RetryPolicy(max_attempts=1)) as client:
        await apply(client, plans.together)
        yield client


async def apply(
    client: AsyncClient, plan: str, told: list[PlanProgress] | None = None
) -> list[PlanProgress]:
    """Apply a plan and return what is told; also into ``told``, in case it fails."""
    told = [] if told is None else told
    async for progress in client.apply_plan(plan, timeout_s=60.0):
        told.append(progress)
    return told


def all_done(told: list[PlanProgress]) -> bool:
    return {p.step for p in told} == {p.step for p in told if p.state is StepState.DONE}


async def groups(client: AsyncClient) -> dict[str, tuple[str, ...]]:
    return {group.name: group.models for group in (await client.status()).groups}


async def test_plans_replace_each_other_and_no_stream_fails(
    client: AsyncClient, plans: Plans, expected: dict[str, dict[str, list]]
) -> None:
    async with Load(client, expected) as load:
        before = await groups(client)
        assert sorted(before.values()) == [("a", "b")]
        for plan, hosted in ((plans.apart, [("a",), ("b",)]), (plans.together, [("a", "b")])):
            await load.go_on()
            told = await apply(client, plan)
            assert all_done(told), told
            now = await groups(client)
            assert sorted(now.values()) == hosted
            assert not set(now) & set(before)
            before = now
        await load.go_on()
    assert load.failures == []


async def test_a_plan_that_fails_leaves_the_old_one_serving(
    client: AsyncClient, plans: Plans, expected: dict[str, dict[str, list]]
) -> None:
    before = await groups(client)
    async with Load(client, expected) as load:
        told: list[PlanProgress] = []
        with pytest.raises(FailedPrecondition, match="the old plan serves"):
            await apply(client, plans.broken, told)
        await load.go_on()
    assert told[-1].state is StepState.FAILED
    assert "'/nowhere'" in told[-1].error
    assert load.failures == []
    assert await groups(client) == before


async def test_a_dry_run_tells_steps_and_bytes_and_moves_nothing(
    client: AsyncClient, served: Served, plans: Plans, tmp_path: Path
) -> None:
    before = (await client.status()).groups
    plan = tmp_path / "plan.yaml"
    plan.write_text(plans.apart)
    command = [*COMMAND, "apply", str(plan), "--dry-run", "--target", served.target]
    shown = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    out, _ = await shown.communicate()
    lines = out.decode().splitlines()
    (old,) = (group.name for group in before)
    assert shown.returncode == 0
    assert len(lines) == 5
    assert "with a on 1 device: 1." in lines[0]
    assert lines[-1] == f"5. remove {old}"
    after = (await client.status()).groups
    assert [(g.name, g.epoch) for g in after] == [(g.name, g.epoch) for g in before]


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ("router: {port: 1}", "plan: router: not a part of a plan"),
        ("models: []\ngroups: []", "plan: models: List should have at least 1 item"),
    ],
)
async def test_what_is_no_plan_is_refused_with_the_key_named(
    client: AsyncClient, plan: str, words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words):
        await apply(client, plan)


async def test_one_plan_is_applied_at_a_time(client: AsyncClient, plans: Plans) -> None:
    first = client.apply_plan(plans.broken, timeout_s=60.0)
    await anext(first)
    with pytest.raises(Aborted, match="another plan is being applied"):
        await apply(client, plans.apart)
    with pytest.raises(FailedPrecondition):
        async for _ in first:
            pass


async def test_models_come_and_go_with_plans(
    client: AsyncClient, plans: Plans, expected: dict[str, dict[str, list]]
) -> None:
    await apply(client, plans.other_model)
    assert {status.card.model for status in await client.models()} == {"a", "c"}
    with pytest.raises(ModelNotFound):
        await client.generate("b", PROMPTS[0])
    options = {"max_tokens": NUM_TOKENS, "temperature": 0.0, "ignore_eos": True}
    generation = await client.generate("c", PROMPTS[0], **options)  # type: ignore[arg-type]
    assert list(generation.sequences[0].token_ids) == expected["a"][PROMPTS[0]]


async def test_a_restarted_controller_keeps_the_plan_in_force(
    client: AsyncClient, served: Served, plans: Plans, expected: dict[str, dict[str, list]]
) -> None:
    await apply(client, plans.apart)
    before = await groups(client)
    async with Load(client, expected) as load:
        await load.go_on()
        os.kill(controller_pid(served.pid), signal.SIGKILL)
        await load.go_on()
        told = await applied_again(client, plans.apart)
        await load.go_on()
    assert told == []
    assert load.failures == []
    assert await groups(client) == before


async def applied_again(client: AsyncClient, plan: str) -> list[PlanProgress]:
    """Apply a plan as soon as the restarted controller takes one."""
    deadline = time.monotonic() + RESTARTED_S
    while True:
        try:
            return await apply(client, plan)
        except RequestError:
            assert time.monotonic() < deadline, "the controller did not come back"
            await asyncio.sleep(0.2)


def controller_pid(root: int) -> int:
    (pid,) = (
        pid
        for pid in descendants(root)
        if b"ControllerActor" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )
    return pid
