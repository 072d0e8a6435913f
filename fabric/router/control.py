"""The ControlService: what runs, and draining it."""

import time
from importlib.metadata import PackageNotFoundError, version

import grpc

from fabric.core.errors import InvalidRequest
from fabric.core.status import FabricStatus
from fabric.router.catalog import Catalog
from fabric.router.dispatch import Dispatcher
from fabric.router.handlers import Context, unary
from fabric.rpc.convert_output import seconds
from fabric.rpc.convert_status import fabric_status_to_proto
from fabric.rpc.v1 import control_pb2 as pb

NAME = pb.DESCRIPTOR.services_by_name["ControlService"].full_name
DRAIN_TIMEOUT_S = 30.0


class ControlServicer:
    """Describes and drains this router and its device groups."""

    def __init__(self, catalog: Catalog, dispatcher: Dispatcher) -> None:
        self._catalog = catalog
        self._dispatcher = dispatcher
        self._started_s = time.monotonic()

    def handler(self) -> grpc.GenericRpcHandler:
        """What to register with a grpc.aio server."""
        methods = {
            "Status": unary(pb.StatusRequest, self.status),
            "Drain": unary(pb.DrainRequest, self.drain),
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
        names = self._catalog.group_names
        if request.group and request.group not in names:
            known = ", ".join(names) or "none"
            raise InvalidRequest.of("group", f"{request.group!r} is not a device group of: {known}")
        for name in (request.group,) if request.group else names:
            self._catalog.link(name).drain()
        if not request.group:
            self._dispatcher.is_draining = True
        left = await self._dispatcher.ledger.wait_idle(request.group, timeout_s)
        return pb.DrainResponse(drained=left == 0, num_inflight=left)


def _version() -> str:
    try:
        return version("llm-fabric")
    except PackageNotFoundError:
        return "unknown"
