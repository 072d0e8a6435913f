"""Has somebody move the fabric to another placement plan, and tells a client how it goes."""

from collections.abc import AsyncIterator
from typing import Protocol

from fabric.core.errors import FailedPrecondition, InvalidRequest
from fabric.core.plan_steps import PlanProgress
from fabric.router.handlers import Context
from fabric.rpc.convert_output import seconds
from fabric.rpc.convert_plan import progress_to_proto
from fabric.rpc.v1 import control_pb2 as pb

TIMEOUT_S = 600.0
MAX_TIMEOUT_S = 86_400.0


class Planner(Protocol):
    """Carries placement plans out."""

    def apply(self, plan: str, dry_run: bool, timeout_s: float) -> AsyncIterator[PlanProgress]:
        """Move the fabric to a plan; it goes on if nobody listens any more.

        Args:
            plan: YAML with ``models`` and ``groups``.
            dry_run: Only tell the steps.
            timeout_s: How long new groups may take to serve, and old ones to drain, each.

        Yields:
            All steps as planned, then each as it begins and ends.

        Raises:
            InvalidRequest: It is no plan.
            FailedPrecondition: A step failed, and the old plan serves on.
            Aborted: Another plan is being applied.
        """
        ...


async def apply_plan(
    planner: Planner | None, request: pb.ApplyPlanRequest, context: Context
) -> None:
    """Answer the RPC.

    Raises:
        RequestError: As :meth:`Planner.apply` does.
        FailedPrecondition: There is no planner.
    """
    if planner is None:
        raise FailedPrecondition("this router knows nobody who starts and stops device groups")
    timeout_s = seconds(request.timeout) if request.HasField("timeout") else TIMEOUT_S
    if not 0 < timeout_s <= MAX_TIMEOUT_S:
        allowed = f"above 0 s, up to {MAX_TIMEOUT_S:g} s"
        raise InvalidRequest.of("timeout", f"is {timeout_s:g} s; allowed: {allowed}")
    async for progress in planner.apply(request.plan, request.dry_run, timeout_s):
        await context.write(progress_to_proto(progress).SerializeToString())
