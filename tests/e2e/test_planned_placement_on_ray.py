"""A placement that `fabric-plan` finds is one that `fabric serve` runs as it was planned."""

import asyncio
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from fabric.client import AsyncClient, StepState
from tests.e2e.live_fabric import serving, shard_pids

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

MODELS = ("chat", "code", "mail")
ANSWER = ", there was a little girl named Lily. She loved to play outsid"
CODE = "import sys; from placement.cli.main import main; sys.exit(main())"
# Another model than those of the plan, which takes its place.
CONFIG: Mapping[str, object] = {
    "models": [{"id": "other", "source": "/nowhere"}],
    "groups": [{"name": "other", "models": ["other"]}],
    "router": {"port": 0},
}


def planning_input(source: Path, group_size: int) -> dict[str, object]:
    """Three models that are one and the same, and two devices like this machine's cores."""
    model = {
        "config": str(source / "config.json"),
        "source": str(source),
        "dtype": "float32",
        "objectives": {"ttft_s": 2.0, "tpot_s": 0.5},
        "max_model_len": 256,
    }
    return {
        "devices": [{"type": "core", "count": 2}],
        "device_types": {"core": {"like": "cpu", "memory": "64MiB"}},
        "models": [
            {**model, "id": name, "rate_per_s": rate}
            for name, rate in zip(MODELS, (1.0, 0.5, 0.2), strict=True)
        ],
        "workload": {"duration_s": 30, "lengths": {"prompt": 20, "output": 20}, "num_held_out": 2},
        "search": {"group_sizes": [group_size], "budget_s": 2},
        "serving": {"max_num_seqs": 8, "max_num_batched_tokens": 128, "num_threads": 1},
    }


def planned(folder: Path, source: Path, group_size: int) -> str:
    """What `fabric-plan plan` writes for groups of so many devices."""
    path, plan = folder / "input.yaml", folder / f"plan-{group_size}.yaml"
    path.write_text(yaml.safe_dump(planning_input(source, group_size)))
    command = [sys.executable, "-c", CODE, "plan", str(path), "--out", str(plan), "--quiet"]
    subprocess.run(command, check=True, timeout=60)
    return plan.read_text()


async def test_planned_groups_serve_all_models_as_they_were_cut(
    stories_path: Path, tmp_path: Path
) -> None:
    singles, pair = (planned(tmp_path, stories_path, size) for size in (1, 2))
    config = tmp_path / "fabric.yaml"
    config.write_text(yaml.safe_dump({**CONFIG, "cache_dir": str(tmp_path)}))

    with serving(config, plan=tmp_path / "plan-1.yaml") as (target, pid):
        async with AsyncClient(target) as client:
            await check_serves(client, singles)
            assert shard_pids(pid) == []
            steps = [step async for step in client.apply_plan(pair)]
            assert steps[-1].state is StepState.DONE
            await check_serves(client, pair)
            # Its two devices are processes of their own.
            assert len(shard_pids(pid)) == 2


async def check_serves(client: AsyncClient, plan: str) -> None:
    """Every model answers from the groups of a plan, and they are what the plan says."""
    answers = await asyncio.gather(*(answer(client, model) for model in MODELS))
    status, planned = await client.status(), yaml.safe_load(plan)["groups"]
    assert answers == [ANSWER] * len(MODELS)
    # One that takes a place that isn't free yet is called g0-2.
    assert {group.name.split("-")[0]: sorted(group.models) for group in status.groups} == {
        group["name"]: sorted(group["models"]) for group in planned
    }
    # With all of their settings: there is nothing left to change.
    assert [step async for step in client.apply_plan(plan, dry_run=True)] == []


async def answer(client: AsyncClient, model: str) -> str:
    """What a model says to the words that its stories begin with."""
    stream = client.stream(model, "Once upon a time", max_tokens=20, temperature=0.0)
    return (await stream.collect()).sequences[0].text
