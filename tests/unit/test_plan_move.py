"""Moves between plans, with groups and routers that are told what to say."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from fabric.config import FabricConfig, parse_config
from fabric.core.plan_steps import StepState
from fabric.router.catalog import GroupAddress
from fabric.serve.controller import Controller
from fabric.serve.directory import Directory, GroupReport, PlanNews, RouterAddress, RouterReport
from fabric.serve.launch import Launch, group_part

ROUTER = "127.0.0.1:1"


def tree(*groups: tuple[str, str]) -> dict[str, object]:
    models = sorted({model for _, model in groups})
    return {
        "models": [{"id": model, "source": f"/models/{model}"} for model in models],
        "groups": [{"name": name, "models": [model]} for name, model in groups],
    }


def plan(*groups: tuple[str, str]) -> str:
    # YAML reads what Python writes of strings in lists and mappings.
    return str(tree(*groups))


@dataclass
class World:
    """A controller, a router that follows it, and groups that serve as soon as they are started."""

    broken: set[str] = field(default_factory=set)
    never: set[str] = field(default_factory=set)
    busy: dict[str, int] = field(default_factory=dict)
    running: dict[str, FabricConfig] = field(default_factory=dict)
    draining: set[str] = field(default_factory=set)
    deleted: list[str] = field(default_factory=list)
    epoch: int = 1
    has_router: bool = True
    followed: Directory = field(default_factory=lambda: Directory(-1))

    async def start(self, groups: Mapping[str, FabricConfig]) -> None:
        if "process" in self.broken:
            raise RuntimeError("first line\nno process")
        self.epoch += 1
        self.running.update(groups)
        for name in self.broken & set(groups):
            await self.controller.note_failure(group_part(name), "no such weights")

    async def delete(self, name: str) -> None:
        self.running.pop(name, None)
        self.draining.discard(name)
        self.deleted.append(name)

    async def failures(self) -> dict[str, str]:
        return {}

    async def waiting(self) -> dict[str, str]:
        return dict.fromkeys(self.never, "waits for nodes")

    async def names(self) -> tuple[str, ...]:
        return tuple(self.running)

    async def live(self, *first: tuple[str, str]) -> None:
        config = parse_config(tree(*first), "test")
        self.launch = Launch(config.model_dump(mode="json"), "controller", "secret")
        self.controller = Controller(self.launch, self)
        self.running = {name: config.only(name) for name, _ in first}
        while True:
            await self.announce()
            await asyncio.sleep(0.001)

    async def announce(self) -> None:
        for name, config in tuple(self.running.items()):
            if name not in self.broken | self.never:
                await self.announce_group(name, config)
        if not self.has_router:
            return
        now = await self.controller.directory()
        # A router goes by what it knew last until a restarted controller has heard all.
        self.followed = now if now.groups else self.followed
        ready = tuple(group.name for group in self.followed.groups)
        report = RouterReport(
            RouterAddress(ROUTER, True), self.followed.version, self.followed.plan, ready
        )
        await self.controller.announce_router(report)

    async def announce_group(self, name: str, config: FabricConfig) -> None:
        report = GroupReport(
            GroupAddress(name, "127.0.0.1", 1, self.epoch),
            config.model_dump(mode="json"),
            self.busy.get(name, 0),
            name in self.draining,
            {model.id: 1000 for model in config.models},
        )
        if await self.controller.announce_group(report):
            self.draining.add(name)

    async def apply(self, text: str, timeout_s: float = 5.0, *, dry_run: bool = False) -> PlanNews:
        begun = await self.controller.apply_plan(text, dry_run, timeout_s)
        if isinstance(begun, PlanNews):
            return begun
        told, news = PlanNews(), PlanNews()
        while not news.is_ended:
            news = await self.controller.watch_plan(begun, len(told.progress))
            told = replace(news, progress=(*told.progress, *news.progress))
        return told

    async def groups(self) -> list[str]:
        return [group.name for group in (await self.controller.directory()).groups]


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
