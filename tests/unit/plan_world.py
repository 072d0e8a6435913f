"""A controller with groups and a router that are told what to say."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fabric.config import FabricConfig, parse_config
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
            "router", RouterAddress(ROUTER, True), self.followed.version, self.followed.plan, ready
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
