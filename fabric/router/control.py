"""The ControlService: what runs, where its requests are, and steering it."""

import time
from importlib.metadata import PackageNotFoundError, version

import grpc

from fabric.core.status import FabricStatus
from fabric.router.catalog import Catalog
from fabric.router.dispatch import Dispatcher
from fabric.router.handlers import Context, streaming, unary
from fabric.router.planning import Planner, apply_plan
from fabric.router.residence import DEFAULT_TIMEOUT_S, Wish, set_residence
from fabric.router.steering import DEFAULT_LIMIT, change_policy, explain_requests, named_groups
from fabric.rpc.convert_output import seconds
from fabric.rpc.convert_requests import change_to_proto, explanation_to_proto
from fabric.rpc.convert_status import fabric_status_to_proto
from fabric.rpc.convert_weights import residence_to_proto, wanted_state
from fabric.rpc.v1 import control_pb2 as pb

NAME = pb.DESCRIPTOR.services_by_name["ControlService"].full_name
DRAIN_TIMEOUT_S = 30.0


class ControlServicer:
    """Describes and steers this router and its device groups."""

    def __init__(
        self, catalog: Catalog, dispatcher: Dispatcher, planner: Planner | None = None
    ) -> None:
        self._catalog = catalog
        self._dispatcher = dispatcher
        self._planner = planner
        self._started_s = time.monotonic()

    def handler(self) -> grpc.GenericRpcHandler:
        """What to register with a grpc.aio server."""
        methods = {
            "Status": unary(pb.StatusRequest, self.status),
            "Drain": unary(pb.DrainRequest, self.drain),
            "ExplainRequests": unary(pb.ExplainRequestsRequest, self.explain_requests),
            "SetPolicy": unary(pb.SetPolicyRequest, self.set_policy),
            "SetResidence": unary(pb.SetResidenceRequest, self.set_residence),
            "ApplyPlan": streaming(pb.ApplyPlanRequest, self.apply_plan),
        }
        return grpc.method_handlers_generic_handler(NAME, methods)

    async def status(self, request: pb.StatusRequest, context: Context) -> pb.StatusResponse:
        """Describe what runs."""
        status = FabricStatus(
            version=_version(),
            uptime_s=time.monotonic() - self._started_s,
            groups=tuple(map(self._catalog.group_status, self._catalog.group_names)),
            num_inflight=self._dispatcher.ledger.num_inflight,
            outcomes=self._dispatcher.outcomes,
            draining=self._dispatcher.is_draining,
        )
        return fabric_status_to_proto(status)

    async def drain(self, request: pb.DrainRequest, context: Context) -> pb.DrainResponse:
        """Drain one device group, or all of them and this router."""
        timeout_s = seconds(request.timeout) if request.HasField("timeout") else DRAIN_TIMEOUT_S
        for name in named_groups(self._catalog, request.group):
            self._catalog.link(name).drain()
        if not request.group:
            self._dispatcher.is_draining = True
        left = await self._dispatcher.ledger.wait_idle(request.group, timeout_s)
        return pb.DrainResponse(drained=left == 0, num_inflight=left)

    async def explain_requests(
        self, request: pb.ExplainRequestsRequest, context: Context
    ) -> pb.ExplainRequestsResponse:
        """Tell where requests in flight are, through whichever router they came."""
        limit = request.limit if request.HasField("limit") else DEFAULT_LIMIT
        explanation = await explain_requests(
            self._catalog, request.group, request.request_id, limit
        )
        return explanation_to_proto(explanation)

    async def set_policy(
        self, request: pb.SetPolicyRequest, context: Context
    ) -> pb.SetPolicyResponse:
        """Switch the scheduling policy of one device group, or of all."""
        changes = await change_policy(self._catalog, request.group, request.policy, request.numbers)
        return pb.SetPolicyResponse(changes=map(change_to_proto, changes))

    async def set_residence(
        self, request: pb.SetResidenceRequest, context: Context
    ) -> pb.SetResidenceResponse:
        """Move or pin a model's weights in one device group, or in all that host it."""
        pinned = request.pinned if request.HasField("pinned") else None
        wish = Wish(request.model, wanted_state(request.state), pinned)
        timeout_s = seconds(request.timeout) if request.HasField("timeout") else DEFAULT_TIMEOUT_S
        residences = await set_residence(self._catalog, request.group, wish, timeout_s)
        return pb.SetResidenceResponse(residences=map(residence_to_proto, residences))

    async def apply_plan(self, request: pb.ApplyPlanRequest, context: Context) -> None:
        """Move the fabric to another placement plan, or tell the steps."""
        await apply_plan(self._planner, request, context)


def _version() -> str:
    try:
        return version("llm-fabric")
    except PackageNotFoundError:
        return "unknown"
