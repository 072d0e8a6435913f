"""How a router serves."""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fabric.core.request import Objectives
from fabric.router.admission import AdmissionLimits
from fabric.router.policy import RoutingName
from fabric.router.tenants import TenantLimits


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """Files in PEM: the server's certificate and key; with ``client_ca``, clients need one too."""

    cert: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True, slots=True)
class RouterSettings:
    """How a router serves; port 0 takes a free one.

    ``model_ids`` are the models that are expected: they are known before a group serves them.
    Without a ``metrics_port``, Prometheus is told nothing. ``routing`` names the routing policy.
    ``objectives``, by model, stand where a request states none of its own. ``tenants`` that are
    not named have the ``default_tenant``'s limits, each by itself. At most ``max_waiting_cold``
    requests wait for one model's weights. A group that is taken off the list keeps its streams
    for ``leave_timeout_s`` at most.
    """

    link_secret: str
    host: str = "127.0.0.1"
    port: int = 0
    model_ids: tuple[str, ...] = ()
    max_message_bytes: int = 8 * 2**20
    max_inflight: int = 1024
    stall_after_s: float = 10.0
    answer_timeout_s: float = 5.0
    tls: TlsSettings | None = None
    link_tls: ssl.SSLContext | None = None
    reflection: bool = True
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = None
    admission: AdmissionLimits = field(default_factory=AdmissionLimits)
    routing: RoutingName = "predicted"
    objectives: Mapping[str, Objectives] = field(default_factory=dict)
    tenants: Mapping[str, TenantLimits] = field(default_factory=dict)
    default_tenant: TenantLimits = field(default_factory=TenantLimits)
    max_waiting_cold: int = 256
    leave_timeout_s: float = 600.0
