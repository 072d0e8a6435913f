"""The parts of a configuration file that stand for themselves: models, router, Ray."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ByteSize, ConfigDict, Field, model_validator

from fabric.core.request import Objectives
from fabric.core.weights import Quantization
from fabric.router.policy import RoutingName
from fabric.router.settings import TlsSettings
from fabric.router.tenants import TenantLimits

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
Port = Annotated[int, Field(ge=0, le=65535)]
Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0)]
Seconds = Annotated[float, Field(gt=0)]
HomePath = Annotated[Path, AfterValidator(Path.expanduser)]


class Section(BaseModel):
    """A part of the file: never changed after loading, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ObjectivesSection(Section):
    """How fast a model's requests should be served, in seconds, where they don't say it."""

    ttft_s: Seconds | None = None
    tpot_s: Seconds | None = None
    e2e_s: Seconds | None = None
    refuse_if_late: bool = False

    def objectives(self) -> Objectives:
        """The same as the router knows it."""
        return Objectives(self.ttft_s, self.tpot_s, self.e2e_s, self.refuse_if_late)


class ModelSection(Section):
    """A model to serve: the id that requests name, and where its weights come from."""

    id: Name
    source: str
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    quantization: Quantization = "none"
    max_model_len: Positive | None = None
    objectives: ObjectivesSection = ObjectivesSection()


class TlsSection(Section):
    """Certificates, as PEM files; with ``client_ca`` clients must show one too."""

    cert: HomePath
    key: HomePath
    client_ca: HomePath | None = None

    def settings(self) -> TlsSettings:
        """The same as the router knows it."""
        return TlsSettings(self.cert, self.key, self.client_ca)


class TenantSection(Section):
    """What one tenant may ask of a router: a bucket of tokens, and requests at once."""

    tokens_per_s: Seconds | None = None
    burst_tokens: Positive | None = None
    max_inflight: Positive | None = None

    @model_validator(mode="after")
    def _check_burst(self) -> Self:
        if self.burst_tokens is not None and self.tokens_per_s is None:
            raise ValueError("burst_tokens needs tokens_per_s")
        return self

    def limits(self) -> TenantLimits:
        """The same as the router knows it."""
        return TenantLimits(self.tokens_per_s, self.burst_tokens, self.max_inflight)


class RouterSection(Section):
    """The gRPC front: where it listens, what it lets in, and how it picks device groups."""

    host: str = "127.0.0.1"
    port: Port = 50051
    num_replicas: Positive = 1
    max_message: ByteSize = ByteSize(8 * 2**20)
    max_inflight: Positive = 1024
    routing: RoutingName = "predicted"
    default_tenant: TenantSection = TenantSection()
    tenants: dict[str, TenantSection] = {}
    stall_after_s: Seconds = 10.0
    reflection: bool = True
    metrics_host: str = "127.0.0.1"
    metrics_port: Port | None = None
    tls: TlsSection | None = None


class RaySection(Section):
    """Ray: an address to join, or a local instance of our own."""

    address: str | None = None
    num_cpus: Positive | None = None
    resources: dict[str, Annotated[float, Field(gt=0)]] = {}
    object_store: ByteSize = ByteSize(100 * 10**6)
