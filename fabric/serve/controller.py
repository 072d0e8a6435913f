"""The fabric's directory: which device groups run where, at which epoch, and how loading goes."""

import asyncio
import time
from dataclasses import dataclass, field, replace
from typing import TypeVar

from fabric.router.catalog import GroupAddress
from fabric.serve.launch import ROUTER, group_part

WATCH_TIMEOUT_S = 10.0

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class LoadingStage:
    """How far a device group's start is: a stage's name, and done of total units."""

    stage: str
    done: int = 0
    total: int | None = None


@dataclass(frozen=True, slots=True)
class RouterAddress:
    """Where a router serves, and whether every configured model answers through it."""

    address: str
    is_ready: bool


@dataclass(frozen=True, slots=True)
class Directory:
    """What the controller knows.

    ``version`` grows with every change of addresses, and from one controller to the next;
    ``loading`` has a stage for each group that is being started, ``failures`` a reason for each
    part (such as "router" or "group g0") whose last start failed.
    """

    version: int = 0
    groups: tuple[GroupAddress, ...] = ()
    routers: tuple[RouterAddress, ...] = ()
    loading: dict[str, LoadingStage] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def reasons(self) -> dict[str, str]:
        """Why groups don't serve, by name, as far as they have told."""
        reasons = {name: f"is being started: {stage.stage}" for name, stage in self.loading.items()}
        for name in {*reasons, *(group.name for group in self.groups)}:
            if failure := self.failures.get(group_part(name)):
                reasons[name] = f"could not be started: {failure}"
        return reasons


class Controller:
    """An actor that device groups report to and routers watch.

    It holds nothing that can't be rebuilt: groups and routers announce themselves again and
    again, so that a restarted controller knows everything within a second.
    """

    def __init__(self) -> None:
        self._directory = Directory(version=time.time_ns())
        self._changed = asyncio.Condition()
        self._last_epoch = 0

    async def next_epoch(self) -> int:
        """A number greater than any given before, also by an earlier controller."""
        self._last_epoch = max(self._last_epoch + 1, time.time_ns() // 1_000_000)
        return self._last_epoch

    async def announce_group(self, address: GroupAddress) -> None:
        """Record where a group serves; an older epoch than the known one is ignored."""
        known = {group.name: group for group in self._directory.groups}
        current = known.get(address.name)
        if current == address or (current and current.epoch > address.epoch):
            return
        known[address.name] = address
        await self._publish(
            groups=tuple(known[name] for name in sorted(known)),
            loading=_without(self._directory.loading, address.name),
            failures=_without(self._directory.failures, group_part(address.name)),
        )

    async def announce_router(self, router: RouterAddress) -> None:
        """Record where a router serves."""
        if router not in self._directory.routers:
            others = [known for known in self._directory.routers if known.address != router.address]
            await self._publish(
                routers=(*others, router), failures=_without(self._directory.failures, ROUTER)
            )

    async def note_loading(self, group: str, stage: LoadingStage) -> None:
        """Record how far a group's start is."""
        loading = {**self._directory.loading, group: stage}
        self._directory = replace(self._directory, loading=loading)

    async def note_failure(self, part: str, message: str) -> None:
        """Record why a part could not start."""
        failures = {**self._directory.failures, part: message}
        self._directory = replace(self._directory, failures=failures)

    async def directory(self) -> Directory:
        """Everything known now."""
        return self._directory

    async def watch(self, version: int) -> Directory:
        """Wait until addresses have changed since ``version``, at most WATCH_TIMEOUT_S."""
        async with self._changed:
            try:
                async with asyncio.timeout(WATCH_TIMEOUT_S):
                    await self._changed.wait_for(lambda: self._directory.version != version)
            except TimeoutError:
                pass
        return self._directory

    async def _publish(self, **changes: object) -> None:
        version = self._directory.version + 1
        async with self._changed:
            self._directory = replace(self._directory, version=version, **changes)  # type: ignore[arg-type]
            self._changed.notify_all()


def _without(mapping: dict[str, Value], key: str) -> dict[str, Value]:
    return {name: value for name, value in mapping.items() if name != key}
