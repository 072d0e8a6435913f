"""Moves a fabric from one placement plan to another while it serves."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from fabric.config import FabricConfig
from fabric.core.clock import Clock
from fabric.core.errors import FabricError, FailedPrecondition, RequestError
from fabric.core.plan import PlacementPlan
from fabric.core.plan_steps import (
    PlanProgress,
    PlanStep,
    StepKind,
    StepState,
    plan_steps,
    target_plan,
)
from fabric.models.source_size import weights_on_disk
from fabric.rpc.failures import failure_of
from fabric.serve.applications import Applications
from fabric.serve.directory import PlanNews
from fabric.serve.launch import group_part
from fabric.serve.roster import Roster
from fabric.serve.routers import Routers

logger = logging.getLogger(__name__)

PERIOD_S = 0.05
LOOK_PERIOD_S = 1.0
# A group that has no place for so long may never get one.
PATIENCE_S = 5.0
# A router that tells nothing for so long is given up, and what it still sends is refused.
FOLLOW_S = 10.0


class _StepFailed(Exception):
    def __init__(self, step: int, reason: str) -> None:
        super().__init__(reason)
        self.step = step


class PlanMove:
    """One way from the plan in force to another, and what was told of it so far.

    Until requests are sent to the new groups, nothing has changed for anybody; whatever fails
    before that is undone.
    """

    def __init__(
        self,
        roster: Roster,
        routers: Routers,
        applications: Applications,
        publish: Callable[[], Awaitable[int]],
        clock: Clock,
    ) -> None:
        """``publish`` tells routers of the roster's plan and returns its version."""
        self._roster = roster
        self._routers = routers
        self._applications = applications
        self._publish = publish
        self._clock = clock
        self._failures: dict[str, str] = {}
        self._steps: tuple[PlanStep, ...] = ()
        self._told: list[PlanProgress] = []
        self._news = asyncio.Event()
        self._is_switched = False
        self._is_ended = False
        self._failure: RequestError | None = None

    @property
    def is_ended(self) -> bool:
        """Whether it is over, however it ended."""
        return self._is_ended

    async def news(self, seen: int, timeout_s: float) -> PlanNews:
        """What was told after the first ``seen`` words; waits for more, at most ``timeout_s``."""
        try:
            async with asyncio.timeout(timeout_s):
                while len(self._told) <= seen and not self._is_ended:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            pass
        failure = failure_of(self._failure) if self._failure else None
        return PlanNews(tuple(self._told[seen:]), self._is_ended, failure)

    def note_failure(self, part: str, reason: str) -> None:
        """A part of the fabric could not be started."""
        self._failures[part] = reason

    async def run(self, config: FabricConfig, dry_run: bool, timeout_s: float) -> None:
        """Move to the plan of a configuration.

        Args:
            config: What is to run.
            dry_run: Only tell the steps.
            timeout_s: How long new groups may take to serve, and old ones to drain, each.
        """
        before = self._roster.plan_configs()
        try:
            old, new = self._roster.placement(), config.plan()
            target = target_plan(old, new)
            sizes = await self._bytes_of_models(new)
            self._steps = plan_steps(old, new, sizes.get)
            for number in range(len(self._steps)):
                self._tell(number, StepState.PLANNED)
            if not dry_run:
                wanted = {g.running_name: config.only(g.name) for g in target.groups}
                await self._carry_out(before, wanted, timeout_s)
        except RequestError as error:
            self._failure = error
        except Exception as error:
            # Whatever Ray or Serve does: the caller is told, and the old plan stays in force.
            logger.exception("the plan can't be carried out")
            await self._fail(error, before)
        finally:
            self._is_ended = True
            self._news.set()

    async def _bytes_of_models(self, plan: PlacementPlan) -> dict[str, int]:
        """What groups have told, or else what lies on disk."""
        sizes = {}
        for model, source in plan.sources:
            told = self._roster.bytes_of_model(model)
            size = told or await asyncio.to_thread(weights_on_disk, source)
            if size is not None:
                sizes[model] = size
        return sizes

    async def _carry_out(
        self,
        before: Mapping[str, FabricConfig | None],
        wanted: Mapping[str, FabricConfig],
        timeout_s: float,
    ) -> None:
        added = {name: config for name, config in wanted.items() if name not in before}
        await self._start(added, timeout_s)
        await self._switch(set(added), {**before, **wanted}, wanted, timeout_s)
        await asyncio.gather(
            *(
                self._remove(number, timeout_s)
                for number, step in enumerate(self._steps)
                if step.kind is StepKind.DRAIN
            )
        )

    async def _start(self, added: Mapping[str, FabricConfig], timeout_s: float) -> None:
        numbers = {s.group: n for n, s in enumerate(self._steps) if s.kind is StepKind.START}
        if not numbers:
            return
        self._roster.stage(set(added))
        for number in numbers.values():
            self._tell(number, StepState.RUNNING)
        await self._applications.start(added)
        started_s = self._clock.now()
        deadline_s = started_s + timeout_s
        look_s = 0.0
        while numbers:
            for name in [name for name in numbers if self._roster.has_told(name)]:
                self._tell(numbers.pop(name), StepState.DONE)
            if self._clock.now() >= look_s:
                look_s = self._clock.now() + LOOK_PERIOD_S
                await self._check_starts(numbers)
                if self._clock.now() > started_s + PATIENCE_S:
                    await self._tell_waiting(numbers)
            if numbers and self._clock.now() > deadline_s:
                name, number = next(iter(numbers.items()))
                reason = (await self._applications.waiting()).get(name, "it was still starting")
                raise _StepFailed(number, f"took longer than {timeout_s:g} s: {reason}")
            await asyncio.sleep(PERIOD_S)

    async def _check_starts(self, numbers: Mapping[str, int]) -> None:
        given_up = await self._applications.failures()
        for name, number in numbers.items():
            reason = self._failures.get(group_part(name)) or given_up.get(name)
            if reason:
                raise _StepFailed(number, f"could not be started: {reason}")

    async def _tell_waiting(self, numbers: Mapping[str, int]) -> None:
        """Tell once what groups wait for that have no place on the nodes."""
        waiting = await self._applications.waiting()
        for name, number in numbers.items():
            reason = waiting.get(name, "")
            if reason and not any(told.step == number and told.error for told in self._told):
                self._tell(number, StepState.RUNNING, reason)

    async def _switch(
        self,
        added: set[str],
        both: Mapping[str, FabricConfig | None],
        wanted: Mapping[str, FabricConfig],
        timeout_s: float,
    ) -> None:
        """Have all routers reach the new groups before they leave the old ones."""
        number = next((n for n, s in enumerate(self._steps) if s.kind is StepKind.SWITCH), None)
        if number is not None:
            self._tell(number, StepState.RUNNING)
            self._roster.set_plan(both)
            await self._publish()
            deadline_s = self._clock.now() + timeout_s
            while not self._routers.reach(added, self._clock.now()):
                if self._clock.now() > deadline_s:
                    raise _StepFailed(number, f"routers did not reach them in {timeout_s:g} s")
                await asyncio.sleep(PERIOD_S)
        self._is_switched = True
        self._roster.set_plan(wanted)
        version = await self._publish()
        follow_s = self._clock.now() + FOLLOW_S
        while not self._routers.follow(version, self._clock.now()):
            if self._clock.now() > follow_s:
                break
            await asyncio.sleep(PERIOD_S)
        self._roster.retire()
        if number is not None:
            self._tell(number, StepState.DONE)

    async def _remove(self, drain: int, timeout_s: float) -> None:
        name = self._steps[drain].group
        remove = next(
            n
            for n, step in enumerate(self._steps)
            if step.kind is StepKind.REMOVE and step.group == name
        )
        self._tell(drain, StepState.RUNNING)
        deadline_s = self._clock.now() + timeout_s
        while not self._roster.is_idle(name, self._clock.now()):
            if self._clock.now() > deadline_s:
                left = self._roster.num_streams(name)
                self._tell(drain, StepState.RUNNING, f"{left} requests go on; it ends after them")
                return
            await asyncio.sleep(PERIOD_S)
        self._tell(drain, StepState.DONE)
        self._tell(remove, StepState.RUNNING)
        await self._applications.delete(name)
        self._roster.forget(name)
        self._tell(remove, StepState.DONE)

    async def _fail(self, error: Exception, before: Mapping[str, FabricConfig | None]) -> None:
        running = [told.step for told in self._told if told.state is StepState.RUNNING]
        done = [told.step for told in self._told if told.state is StepState.DONE]
        left = [step for step in running if step not in done]
        number = error.step if isinstance(error, _StepFailed) else min(left, default=0)
        reason = _last_line(error)
        serving = "new" if self._is_switched else "old"
        what = self._steps[number].description if self._steps else "no step is known"
        self._failure = FailedPrecondition(f"{what}: {reason}; the {serving} plan serves")
        if not self._is_switched:
            await self._undo(before)
        if self._steps:
            self._tell(number, StepState.FAILED, reason)

    async def _undo(self, before: Mapping[str, FabricConfig | None]) -> None:
        """Go back to the old plan; groups that may have requests already drain before they end."""
        added = [step.group for step in self._steps if step.kind is StepKind.START]
        is_shown = any(name in self._roster.plan for name in added)
        if is_shown:
            self._roster.set_plan(before)
            await self._publish()
            self._roster.retire()
            return
        for name in added:
            await self._applications.delete(name)
            self._roster.forget(name)

    def _tell(self, number: int, state: StepState, error: str = "") -> None:
        step = self._steps[number]
        progress = PlanProgress(number, step.description, step.num_bytes, state, error)
        logger.info("plan, step %d: %s: %s %s", number, state, step.description, error)
        self._told.append(progress)
        self._news.set()


def _last_line(error: Exception) -> str:
    message = error.message if isinstance(error, FabricError) else str(error)
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
