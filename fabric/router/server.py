"""The router: a grpc.aio server on a port of its own, and what it is made of."""

import asyncio
import secrets
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from fabric.core.errors import ConfigError
from fabric.core.request import Objectives
from fabric.core.status import GroupState, ModelState
from fabric.models.tokenizer import Tokenizer as ModelTokenizer
from fabric.router import control, health, servicer
from fabric.router.admission import Admission
from fabric.router.catalog import Catalog, CatalogRules
from fabric.router.connection import GroupAddress, LinkOptions
from fabric.router.dispatch import Dispatcher
from fabric.router.ledger import InflightLedger
from fabric.router.metrics import RouterMetrics
from fabric.router.planning import Planner
from fabric.router.policy import RoutingPolicy, new_policy
from fabric.router.routing import Routing
from fabric.router.settings import RouterSettings as RouterSettings
from fabric.router.settings import TlsSettings as TlsSettings
from fabric.router.tenants import TenantBuckets
from fabric.router.tokenizers import Tokenizer, TokenizerCache
from fabric.telemetry.exposition import MetricsServer

HEALTH_INTERVAL_S = 0.1


class RouterServer:
    """Serves InferenceService, ControlService, health and reflection for the groups it is told of.

    All methods belong to one event loop.
    """

    def __init__(
        self,
        settings: RouterSettings,
        policy: RoutingPolicy | None = None,
        load_tokenizer: Callable[[Path], Tokenizer] = ModelTokenizer.load,
        planner: Planner | None = None,
    ) -> None:
        self._settings = settings
        self._planner = planner
        link = LinkOptions(
            settings.link_secret,
            uuid.uuid4().hex,
            settings.link_tls,
            answer_timeout_s=settings.answer_timeout_s,
        )
        self._health = health.HealthServicer()
        self._tokenizers = TokenizerCache(load_tokenizer)
        self._admission = Admission(self._tokenizers, settings.admission)
        rules = CatalogRules(settings.stall_after_s, settings.leave_timeout_s)
        self._catalog = Catalog(link, settings.model_ids, rules, self._update_health)
        self._dispatcher = self._new_dispatcher(policy)
        self._metrics = MetricsServer(RouterMetrics(self._catalog, self._dispatcher))
        self.metrics_port: int | None = None

    async def start(self) -> int:
        """Serve; return the bound port.

        Raises:
            ConfigError: The address can't be bound, or a TLS file can't be read.
        """
        self._update_health()
        self._server = self._new_server()
        port = self._bind()
        settings = self._settings
        if settings.metrics_port is not None:
            self.metrics_port = await self._metrics.start(
                settings.metrics_host, settings.metrics_port
            )
        await self._server.start()
        self._monitoring = asyncio.create_task(self._monitor())
        return port

    def set_groups(self, addresses: tuple[GroupAddress, ...]) -> None:
        """Make these the known device groups; groups that are gone end their requests first."""
        self._catalog.set_groups(addresses)
        self._dispatcher.routing.keep_only({address.name for address in addresses})

    def set_models(self, objectives: Mapping[str, Objectives]) -> None:
        """Make these the known models, each with what holds where requests state no objective."""
        self._catalog.set_models(objectives)
        self._dispatcher.routing.set_objectives(objectives)

    def explain(self, reasons: Mapping[str, str]) -> None:
        """Note why groups are down, by name, for those who ask for the status."""
        self._catalog.explain(reasons)

    @property
    def is_ready(self) -> bool:
        """Whether every known model can be answered now."""
        return all(
            self._catalog.model_status(model).state is ModelState.READY
            for model in self._catalog.model_ids
        )

    @property
    def ready_groups(self) -> tuple[str, ...]:
        """The device groups that can take requests now, by name."""
        states = {name: self._catalog.group_state(name) for name in self._catalog.group_names}
        return tuple(name for name, state in states.items() if state is GroupState.READY)

    @property
    def num_inflight(self) -> int:
        """Requests in flight."""
        return self._dispatcher.ledger.num_inflight

    async def drain(self, timeout_s: float) -> int:
        """Refuse new requests; return how many are still in flight after ``timeout_s``."""
        self._dispatcher.is_draining = True
        self._update_health()
        return await self._dispatcher.ledger.wait_idle("", timeout_s)

    async def stop(self, grace_s: float) -> None:
        """Stop serving; requests in flight get ``grace_s`` to end."""
        self._dispatcher.is_draining = True
        self._update_health()
        await self._server.stop(grace_s)
        self._metrics.stop()
        self._monitoring.cancel()
        await asyncio.wait([self._monitoring])
        await self._catalog.stop()
        self._tokenizers.stop()

    def _new_dispatcher(self, policy: RoutingPolicy | None) -> Dispatcher:
        settings = self._settings
        ledger = InflightLedger(settings.max_inflight)
        routing = Routing(
            policy or new_policy(settings.routing, secrets.randbits(32)),
            ledger.work,
            settings.objectives,
            settings.max_waiting_cold,
        )
        tenants = TenantBuckets(settings.tenants, settings.default_tenant)
        return Dispatcher(self._catalog, self._admission, routing, ledger, tenants)

    def _new_server(self) -> grpc.aio.Server:
        server = grpc.aio.server(options=_options(self._settings.max_message_bytes))
        inference = servicer.InferenceServicer(
            self._catalog, self._dispatcher, self._admission, self._tokenizers
        )
        controller = control.ControlServicer(self._catalog, self._dispatcher, self._planner)
        server.add_generic_rpc_handlers((inference.handler(), controller.handler()))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if self._settings.reflection:
            names = (servicer.NAME, control.NAME, health.NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, server)
        return server

    def _bind(self) -> int:
        settings = self._settings
        address = f"{settings.host}:{settings.port}"
        try:
            if settings.tls is None:
                return self._server.add_insecure_port(address)
            return self._server.add_secure_port(address, _credentials(settings.tls))
        except RuntimeError as error:
            # gRPC's reason names neither the port's holder nor what is wrong with a certificate.
            what = "port or address" if settings.tls is None else "port, address or certificates"
            raise ConfigError(
                f"the router can't listen on {address}: bad or taken {what}"
            ) from error

    def _update_health(self) -> None:
        self._health.update(health.health_statuses(self._catalog, self._dispatcher))

    async def _monitor(self) -> None:
        # Progress shows only with time: a group that stalls sends nothing that would tell.
        while True:
            self._update_health()
            await asyncio.sleep(HEALTH_INTERVAL_S)


def _credentials(tls: TlsSettings) -> grpc.ServerCredentials:
    pair = (_read_pem(tls.key), _read_pem(tls.cert))
    client_ca = _read_pem(tls.client_ca) if tls.client_ca else None
    return grpc.ssl_server_credentials([pair], client_ca, client_ca is not None)


def _read_pem(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"the router can't read {path}: {error.strerror}") from error


def _options(max_message_bytes: int) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        # Two routers on one port would each get half of the clients, silently.
        ("grpc.so_reuseport", 0),
        # A unary call that generates for minutes is silent; its client may ping meanwhile.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
    ]
