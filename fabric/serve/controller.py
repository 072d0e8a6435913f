"""The fabric's directory: which device groups run where, at which epoch, and how loading goes."""

import asyncio
import contextlib
import time
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, TypeVar

from fabric.config import FabricConfig, parse_config, parse_plan
from fabric.core.clock import MonotonicClock
from fabric.core.errors import Aborted, ConfigError, FailedPrecondition, InvalidRequest
from fabric.rpc.failures import failure_of
from fabric.serve.applications import Applications
from fabric.serve.directory import (
    Directory,
    GroupReport,
    LoadingStage,
    PlanNews,
    RouterReport,
)
from fabric.serve.launch import ROUTER, Launch, group_part
from fabric.serve.plan_move import PlanMove
from fabric.serve.roster import Roster
from fabric.serve.routers import Routers

WATCH_TIMEOUT_S = 10.0
# How long a restarted controller listens before it says anything: all tell of themselves anew
# every second.
LISTEN_S = 3.0

Value = TypeVar("Value")


class Controller:
    """An actor that device groups report to and routers watch; it carries placement plans out.

    It holds nothing that can't be rebuilt: groups and routers announce themselves again and
    again, so that a restarted controller knows everything within seconds. Which groups belong to
    the plan it then hears from the routers.
    """

    def __init__(
        self,
        launch: Launch | None = None,
        applications: Applications | None = None,
        is_restarted: bool = False,
    ) -> None:
        """Begin with the plan of a launch.

        Args:
            launch: What was launched; None: groups come and go without us.
            applications: Starts and removes groups.
            is_restarted: Whether there was an earlier controller of the same launch.
        """
        self._launch = launch
        self._applications = applications
        self._clock = MonotonicClock()
        self._roster = Roster(_first_plan(launch))
        self._routers = Routers()
        self._directory = Directory(
            time.time_ns(), plan=self._roster.plan, models=self._roster.models
        )
        self._changed = asyncio.Condition()
        self._last_epoch = 0
        self._is_listening = is_restarted and launch is not None
        self._moves: dict[int, PlanMove] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._removing: set[str] = set()

    async def next_epoch(self) -> int:
        """A number greater than any given before, also by an earlier controller."""
        self._last_epoch = max(self._last_epoch + 1, time.time_ns() // 1_000_000)
        return self._last_epoch

    async def announce_group(self, report: GroupReport) -> bool:
        """Record where a group serves; True if it is to finish what it has and take nothing new."""
        name = report.address.name
        self._listen()
        has_moved = self._roster.note(report, self._clock.now())
        if has_moved and not self._is_listening:
            await self._publish_plan()
        if name in self._directory.loading or group_part(name) in self._directory.failures:
            self._directory = replace(
                self._directory,
                loading=_without(self._directory.loading, name),
                failures=_without(self._directory.failures, group_part(name)),
            )
        if self._is_listening or not self._roster.is_retired(name):
            return False
        self._remove_if_idle(name)
        return True

    async def announce_router(self, report: RouterReport) -> None:
        """Record where a router serves, and how far it follows the directory."""
        self._listen()
        if self._routers.note(report, self._clock.now()):
            await self._publish(
                routers=self._routers.addresses,
                failures=_without(self._directory.failures, ROUTER),
            )

    async def note_loading(self, group: str, stage: LoadingStage) -> None:
        """Record how far a group's start is."""
        if self._roster.is_known(group):
            loading = {**self._directory.loading, group: stage}
            self._directory = replace(self._directory, loading=loading)

    async def note_failure(self, part: str, message: str) -> None:
        """Record why a part could not start."""
        for move in self._moves.values():
            move.note_failure(part, message)
        if part == ROUTER or any(part == group_part(name) for name in self._roster.plan):
            failures = {**self._directory.failures, part: message}
            self._directory = replace(self._directory, failures=failures)

    async def directory(self) -> Directory:
        """Everything known now."""
        return self._directory

    async def watch(self, version: int) -> Directory:
        """Wait until addresses have changed since ``version``, at most WATCH_TIMEOUT_S.

        A restarted controller that has not heard all groups says nothing.
        """
        self._listen()
        async with self._changed:
            try:
                async with asyncio.timeout(WATCH_TIMEOUT_S):
                    await self._changed.wait_for(
                        lambda: not self._is_listening and self._directory.version != version
                    )
            except TimeoutError:
                pass
        return self._directory

    async def apply_plan(self, plan: str, dry_run: bool, timeout_s: float) -> int | PlanNews:
        """Begin to move to a plan; return its number, or why it is refused."""
        try:
            return self._begin(plan, dry_run, timeout_s)
        except (InvalidRequest, FailedPrecondition, Aborted) as error:
            return PlanNews(is_ended=True, failure=failure_of(error))

    async def watch_plan(self, number: int, seen: int) -> PlanNews:
        """What happened to a plan after the first ``seen`` words; waits at most for a while."""
        move = self._moves.get(number)
        if move is None:
            lost = "the controller was restarted meanwhile; `fabric status` shows what runs"
            return PlanNews(is_ended=True, failure=failure_of(FailedPrecondition(lost)))
        return await move.news(seen, WATCH_TIMEOUT_S)

    async def stop(self) -> tuple[str, ...]:
        """Apply nothing any more; the names of all groups that run or are being started."""
        for task in tuple(self._tasks):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        return self._roster.names

    def _begin(self, plan: str, dry_run: bool, timeout_s: float) -> int:
        if self._launch is None or self._applications is None:
            raise FailedPrecondition(
                "this fabric was deployed as one Serve application; deploy it anew instead"
            )
        if self._is_listening:
            raise FailedPrecondition("the controller was restarted, and listens to its groups yet")
        if any(not move.is_ended for move in self._moves.values()):
            raise Aborted("another plan is being applied")
        try:
            config = parse_plan(parse_config(self._launch.config, "the launch"), plan, "plan")
        except ConfigError as error:
            raise InvalidRequest.of("plan", error.message) from error
        move = PlanMove(
            self._roster, self._routers, self._applications, self._publish_plan, self._clock
        )
        number = time.time_ns()
        self._moves = {number: move}
        self._spawn(move.run(config, dry_run, timeout_s))
        return number

    def _remove_if_idle(self, name: str) -> None:
        """Remove a group that nobody expects; those that a plan replaces are removed by it."""
        is_moving = any(not move.is_ended for move in self._moves.values())
        if self._applications is None or is_moving or name in self._removing:
            return
        if self._roster.is_idle(name, self._clock.now()):
            self._removing.add(name)
            self._spawn(self._remove(name))

    async def _remove(self, name: str) -> None:
        assert self._applications is not None
        try:
            await self._applications.delete(name)
            self._roster.forget(name)
        finally:
            self._removing.discard(name)

    def _listen(self) -> None:
        if self._is_listening and not self._tasks:
            self._spawn(self._find_plan())

    async def _find_plan(self) -> None:
        """Hear from the routers what the plan is; if there are none, from Serve what runs."""
        assert self._applications is not None
        await asyncio.sleep(LISTEN_S)
        plan = self._routers.newest_plan or await self._applications.names()
        self._is_listening = False
        if plan:
            self._roster.set_plan(dict.fromkeys(plan))
            self._roster.retire()
        await self._publish_plan()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _publish_plan(self) -> int:
        roster = self._roster
        loading = {
            name: stage for name, stage in self._directory.loading.items() if roster.is_known(name)
        }
        await self._publish(
            groups=roster.addresses, plan=roster.plan, models=roster.models, loading=loading
        )
        return self._directory.version

    async def _publish(self, **changes: object) -> None:
        version = self._directory.version + 1
        async with self._changed:
            self._directory = replace(self._directory, version=version, **changes)  # type: ignore[arg-type]
            self._changed.notify_all()


def _first_plan(launch: Launch | None) -> dict[str, FabricConfig] | None:
    if launch is None:
        return None
    config = parse_config(launch.config, "the launch")
    return {group.name: config.only(group.name) for group in config.groups}


def _without(mapping: dict[str, Value], key: str) -> dict[str, Value]:
    return {name: value for name, value in mapping.items() if name != key}
