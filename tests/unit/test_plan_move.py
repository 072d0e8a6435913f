"""Moves between plans: what is started, switched, drained, removed or undone."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from fabric.config import parse_config
from fabric.core.plan_steps import StepState
from fabric.serve.controller import Controller
from fabric.serve.directory import PlanNews, RouterAddress, RouterReport
from fabric.serve.routers import Routers
from tests.unit.plan_world import World, plan, tree


@pytest.fixture
def live() -> Callable[..., Awaitable[World]]:
    tasks = []

    async def start(*first: tuple[str, str], **options: object) -> World:
        world = World(**options)  # type: ignore[arg-type]
        tasks.append(asyncio.create_task(world.live(*first)))
        while not hasattr(world, "controller") or not await world.groups():
            await asyncio.sleep(0)
        return world

    return start


Live = Callable[..., Awaitable[World]]


def states(news: PlanNews) -> list[StepState]:
    """The last state of each step."""
    last = {progress.step: progress.state for progress in news.progress}
    return [last[step] for step in sorted(last)]


async def test_new_groups_serve_before_the_old_ones_are_removed(live: Live) -> None:
    world = await live(("g0", "a"))
    news = await world.apply(plan(("g0", "b"), ("g1", "a")))
    assert news.failure is None
    assert states(news) == [StepState.DONE] * 5
    assert world.deleted == ["g0"]
    assert await world.groups() == ["g0-2", "g1"]
    assert set((await world.controller.directory()).models or ()) == {"a", "b"}


async def test_the_way_back_uses_the_plan_s_names_again(live: Live) -> None:
    world = await live(("g0", "a"))
    await world.apply(plan(("g0", "b")))
    await world.apply(plan(("g0", "a")))
    assert await world.groups() == ["g0"]
    assert world.deleted == ["g0", "g0-2"]


async def test_a_plan_that_is_in_force_already_moves_nothing(live: Live) -> None:
    world = await live(("g0", "a"), ("g1", "b"))
    news = await world.apply(plan(("g1", "b"), ("g0", "a")))
    assert (news.progress, news.failure, world.deleted) == ((), None, [])


async def test_a_dry_run_tells_bytes_and_moves_nothing(live: Live) -> None:
    world = await live(("g0", "a"))
    news = await world.apply(plan(("g1", "a")), dry_run=True)
    assert states(news) == [StepState.PLANNED] * 4
    assert news.progress[0].num_bytes == 1000
    assert (await world.groups(), set(world.running)) == (["g0"], {"g0"})


async def test_the_bytes_of_a_model_that_no_group_knows_are_those_of_its_files(
    live: Live, tmp_path: Path
) -> None:
    (tmp_path / "model-1.safetensors").write_bytes(bytes(700))
    (tmp_path / "model-2.safetensors").write_bytes(bytes(50))
    world = await live(("g0", "a"))
    text = plan(("g1", "b"), ("g2", "c")).replace("/models/b", str(tmp_path))
    news = await world.apply(text, dry_run=True)
    assert [progress.num_bytes for progress in news.progress[:2]] == [750, 0]
    assert "the size of c is not known yet" in news.progress[1].description


@pytest.mark.parametrize(
    ("broken", "never", "words"),
    [
        ({"g2"}, set(), "could not be started: no such weights"),
        (set(), {"g2"}, "took longer than 0.05 s: waits for nodes"),
        ({"process"}, set(), "no process"),
    ],
)
async def test_what_was_started_is_removed_when_a_step_fails(
    live: Live, broken: set[str], never: set[str], words: str
) -> None:
    world = await live(("g0", "a"), broken=broken, never=never)
    news = await world.apply(plan(("g1", "a"), ("g2", "b")), 0.05)
    assert news.failure is not None
    assert news.failure.kind == "FailedPrecondition"
    assert words in news.failure.message
    assert StepState.FAILED in states(news)
    assert sorted(world.deleted) == ["g1", "g2"]
    assert await world.groups() == ["g0"]
    assert set((await world.controller.directory()).models or ()) == {"a"}


async def test_a_group_with_streams_is_removed_only_after_they_end(live: Live) -> None:
    world = await live(("g0", "a"), busy={"g0": 3})
    news = await world.apply(plan(("g1", "a")), 0.1)
    assert news.failure is None
    assert news.progress[-1].error == "3 requests go on; it ends after them"
    assert world.deleted == []
    world.busy.clear()
    while world.deleted != ["g0"]:
        await asyncio.sleep(0)


async def test_another_plan_has_to_wait(live: Live) -> None:
    world = await live(("g0", "a"), busy={"g0": 1})
    first = asyncio.create_task(world.apply(plan(("g1", "a")), 0.1))
    while not world.draining:
        await asyncio.sleep(0)
    news = await world.apply(plan(("g0", "a")))
    assert news.failure is not None
    assert news.failure.kind == "Aborted"
    await first


async def test_what_is_no_plan_is_refused(live: Live) -> None:
    world = await live(("g0", "a"))
    news = await world.apply("groups: []")
    assert news.failure is not None
    assert news.failure.kind == "InvalidRequest"
    assert "models: Field required" in news.failure.message


async def test_a_group_that_no_plan_has_is_drained_and_removed(live: Live) -> None:
    world = await live(("g0", "a"))
    world.running["g9"] = world.running["g0"]
    while world.deleted != ["g9"]:
        await asyncio.sleep(0)
    assert await world.groups() == ["g0"]


async def test_groups_of_one_application_are_not_moved_by_plans() -> None:
    news = await Controller().apply_plan(plan(("g0", "a")), False, 1.0)
    assert isinstance(news, PlanNews)
    assert news.failure is not None
    assert news.failure.kind == "FailedPrecondition"


async def restart(world: World) -> None:
    """Another controller takes over, which knows the launch and nothing of what came after."""
    old = world.controller
    world.controller = Controller(world.launch, world, is_restarted=True)
    assert await world.controller.watch(0) != await old.directory()


async def test_a_restarted_controller_keeps_the_plan_that_routers_follow(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fabric.serve.controller.LISTEN_S", 0.02)
    world = await live(("g0", "a"))
    await world.apply(plan(("g1", "b")))
    world.running["g0"] = parse_config(tree(("g0", "a")), "test")
    await restart(world)
    directory = await world.controller.directory()
    assert (directory.plan, set(directory.models or ())) == (("g1",), {"b"})
    while world.deleted != ["g0", "g0"]:
        await asyncio.sleep(0)
    assert await world.groups() == ["g1"]


async def test_a_restarted_controller_without_routers_keeps_what_runs(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fabric.serve.controller.LISTEN_S", 0.02)
    world = await live(("g0", "a"))
    await world.apply(plan(("g1", "b")))
    world.has_router = False
    await restart(world)
    assert await world.groups() == ["g1"]


async def test_groups_of_a_plan_that_a_restart_cuts_short_are_removed(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fabric.serve.controller.LISTEN_S", 0.02)
    world = await live(("g0", "a"), never={"g1"})
    begun = await world.controller.apply_plan(plan(("g1", "b")), False, 5.0)
    while "g1" not in world.running:
        await asyncio.sleep(0)
    world.never.clear()
    await world.controller.stop()
    await restart(world)
    assert isinstance(begun, int)
    news = await world.controller.watch_plan(begun, 0)
    assert news.failure is not None
    assert "restarted meanwhile" in news.failure.message
    while world.deleted != ["g1"]:
        await asyncio.sleep(0)
    assert await world.groups() == ["g0"]


def report(router_id: str, version: int, *ready: str, is_ready: bool = True) -> RouterReport:
    return RouterReport(router_id, RouterAddress("0.0.0.0:1", is_ready), version, ("g0",), ready)


def test_routers_of_one_address_are_each_waited_for() -> None:
    routers = Routers()
    routers.note(report("x", 5, "g0"), 0.0)
    routers.note(report("y", 4, is_ready=False), 0.0)
    assert routers.addresses == (RouterAddress("0.0.0.0:1", False),)
    assert not routers.follow(5, 1.0)
    assert not routers.reach({"g0"}, 1.0)


def test_a_silent_router_is_not_waited_for() -> None:
    routers = Routers()
    routers.note(report("x", 5, "g0"), 0.0)
    assert routers.note(report("y", 6, "g0", is_ready=False), 10.0)
    assert routers.follow(6, 10.0)
    assert routers.addresses == (RouterAddress("0.0.0.0:1", False),)
    assert not routers.note(report("y", 7, is_ready=False), 11.0)
    assert routers.newest_plan == ("g0",)
