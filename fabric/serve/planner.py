"""How a router has the controller carry placement plans out."""

from collections.abc import AsyncGenerator
from typing import Any

from ray.exceptions import RayError

from fabric.core.errors import FailedPrecondition, Unavailable
from fabric.core.plan_steps import PlanProgress
from fabric.rpc.failures import error_of
from fabric.serve.directory import PlanNews


class ControllerPlanner:
    """Plans are the controller's; a router only asks, and passes on what it hears."""

    def __init__(self, controller: Any) -> None:
        self._controller = controller

    async def apply(
        self, plan: str, dry_run: bool, timeout_s: float
    ) -> AsyncGenerator[PlanProgress, None]:
        """As :meth:`fabric.router.planning.Planner.apply`.

        Raises:
            Unavailable: The controller restarts.
        """
        try:
            begun: int | PlanNews = await self._controller.apply_plan.remote(
                plan, dry_run, timeout_s
            )
        except RayError as error:
            raise Unavailable("the controller does not answer", 1.0) from error
        if isinstance(begun, PlanNews):
            assert begun.failure is not None
            raise error_of(begun.failure)
        seen = 0
        news = PlanNews()
        while not news.is_ended:
            news = await self._news(begun, seen)
            seen += len(news.progress)
            for progress in news.progress:
                yield progress
        if news.failure is not None:
            raise error_of(news.failure)

    async def _news(self, number: int, seen: int) -> PlanNews:
        try:
            news: PlanNews = await self._controller.watch_plan.remote(number, seen)
        except RayError as error:
            lost = "the controller ended meanwhile; `fabric status` shows what runs"
            raise FailedPrecondition(lost) from error
        return news
