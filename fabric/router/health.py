"""grpc.health.v1: whether this router, and each model, can answer now."""

import asyncio
from collections.abc import Mapping

import grpc
from grpc_health.v1 import health_pb2 as pb
from grpc_health.v1 import health_pb2_grpc

from fabric.core.status import ModelState
from fabric.router import control, servicer
from fabric.router.catalog import Catalog
from fabric.router.dispatch import Dispatcher
from fabric.router.handlers import Context

NAME = pb.DESCRIPTOR.services_by_name["Health"].full_name
SERVING = pb.HealthCheckResponse.SERVING
NOT_SERVING = pb.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = pb.HealthCheckResponse.SERVICE_UNKNOWN


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Check, and a Watch that goes on.

    The library's own asyncio servicer forgets the other watchers of a service when one leaves.
    """

    def __init__(self) -> None:
        self._statuses: Mapping[str, int] = {}
        self._changed = asyncio.Event()

    def update(self, statuses: Mapping[str, int]) -> None:
        """Set what each service's status is; watchers are told of changes."""
        if statuses != self._statuses:
            self._statuses = dict(statuses)
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()

    async def Check(  # noqa: N802 - the name in the proto
        self, request: pb.HealthCheckRequest, context: Context
    ) -> pb.HealthCheckResponse:
        """The status now; NOT_FOUND for a service that there isn't."""
        if request.service not in self._statuses:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service!r}")
        return pb.HealthCheckResponse(status=self._statuses[request.service])

    async def Watch(  # noqa: N802
        self, request: pb.HealthCheckRequest, context: Context
    ) -> None:
        """The status now and at each change, until the client leaves."""
        last: int | None = None
        while True:
            changed = self._changed
            status = self._statuses.get(request.service, SERVICE_UNKNOWN)
            if status != last:
                await context.write(pb.HealthCheckResponse(status=status))
                last = status
            else:
                await changed.wait()


def health_statuses(catalog: Catalog, dispatcher: Dispatcher) -> dict[str, int]:
    """Each service's status: a model serves while a group that has it makes progress."""
    models = {
        f"model:{model}": catalog.model_status(model).state is ModelState.READY
        and not dispatcher.is_draining
        for model in catalog.model_ids
    }
    serves = any(models.values())
    services = {"": serves, servicer.NAME: serves, control.NAME: True, **models}
    return {name: SERVING if is_up else NOT_SERVING for name, is_up in services.items()}
