"""ApplyPlan from the command and the client to whoever carries plans out."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fabric.cli import main
from fabric.client import (
    Aborted,
    AsyncClient,
    Client,
    FailedPrecondition,
    InvalidRequest,
    PlanProgress,
    RequestError,
    StepState,
)
from fabric.router.server import RouterServer, RouterSettings

STEPS = (
    PlanProgress(0, "start g1", 7, StepState.PLANNED),
    PlanProgress(0, "start g1", 7, StepState.RUNNING),
    PlanProgress(0, "start g1", 7, StepState.FAILED, "no room"),
)


class FakePlanner:
    """Tells STEPS, then fails if it is told to."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, bool, float]] = []
        self.steps = STEPS
        self.error: RequestError | None = None

    async def apply(
        self, plan: str, dry_run: bool, timeout_s: float
    ) -> AsyncIterator[PlanProgress]:
        self.asked.append((plan, dry_run, timeout_s))
        for step in self.steps:
            yield step
        if self.error is not None:
            raise self.error


@pytest.fixture
def planner() -> FakePlanner:
    return FakePlanner()


@pytest.fixture
async def target(planner: FakePlanner) -> AsyncIterator[str]:
    router = RouterServer(RouterSettings("secret"), planner=planner)
    yield f"127.0.0.1:{await router.start()}"
    await router.stop(0)


async def applied(target: str, **options: float) -> list[PlanProgress]:
    async with AsyncClient(target) as client:
        return [step async for step in client.apply_plan("models: []", **options)]


async def test_steps_reach_the_client_as_they_were_told(target: str, planner: FakePlanner) -> None:
    assert tuple(await applied(target, dry_run=True, timeout_s=2.5)) == STEPS
    assert planner.asked == [("models: []", True, 2.5)]


async def test_new_groups_get_ten_minutes_if_nobody_says(target: str, planner: FakePlanner) -> None:
    await applied(target)
    assert planner.asked == [("models: []", False, 600.0)]


async def test_the_synchronous_client_hears_the_same(target: str) -> None:
    def steps() -> tuple[PlanProgress, ...]:
        with Client(target) as client:
            return tuple(client.apply_plan("models: []"))

    assert await asyncio.to_thread(steps) == STEPS


@pytest.mark.parametrize(
    "error", [FailedPrecondition("no room"), Aborted("busy"), InvalidRequest.of("plan", "is none")]
)
async def test_an_error_reaches_the_client_as_it_was_raised(
    target: str, planner: FakePlanner, error: RequestError
) -> None:
    planner.error = error
    with pytest.raises(type(error), match=error.message):
        await applied(target)


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, 1e6])
async def test_a_timeout_out_of_bounds_is_refused(target: str, timeout_s: float) -> None:
    with pytest.raises(InvalidRequest, match="timeout: is "):
        await applied(target, timeout_s=timeout_s)


async def test_a_router_that_stands_by_itself_applies_nothing() -> None:
    router = RouterServer(RouterSettings("secret"))
    target = f"127.0.0.1:{await router.start()}"
    with pytest.raises(FailedPrecondition, match="knows nobody who starts"):
        await applied(target)
    await router.stop(0)


async def run(*words: str) -> int:
    return await asyncio.to_thread(main, ["apply", *words])


async def test_the_command_prints_each_step_and_fails_with_the_reason(
    target: str, planner: FakePlanner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planner.error = FailedPrecondition("no room; the old plan serves")
    path = tmp_path / "plan.yaml"
    path.write_text("groups: []")
    assert await run(str(path), "--target", target, "--timeout", "3") == 1
    printed = capsys.readouterr()
    assert printed.out == "1. start g1\n1. running: start g1\n1. failed: start g1 (no room)\n"
    assert printed.err == "fabric: no room; the old plan serves\n"
    assert planner.asked == [("groups: []", False, 3.0)]


async def test_the_command_says_when_there_is_nothing_to_do(
    target: str, planner: FakePlanner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planner.steps = ()
    path = tmp_path / "plan.yaml"
    path.write_text("groups: []")
    assert await run(str(path), "--target", target) == 0
    assert capsys.readouterr().out == "nothing to do: these groups run already\n"


async def test_a_plan_that_is_not_there_is_wrong_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await run(str(tmp_path / "none.yaml")) == 2
    assert "none.yaml: No such file or directory" in capsys.readouterr().err
