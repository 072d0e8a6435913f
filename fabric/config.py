"""The configuration of a fabric: one YAML file, validated here, turned into settings.

This is the composition root: nothing below it reads configuration, and nothing changes it.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from fabric.core.errors import ConfigError
from fabric.core.plan import ParallelConfig
from fabric.engine.settings import EngineSettings, ParkingSettings, WorkerSettings
from fabric.models.sources import default_cache_dir
from fabric.router.server import RouterSettings, TlsSettings
from fabric.scheduler.policies import PolicyConfig, PolicyName
from fabric.scheduler.settings import SchedulerConfig

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
Port = Annotated[int, Field(ge=0, le=65535)]
Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0)]
Seconds = Annotated[float, Field(gt=0)]
HomePath = Annotated[Path, AfterValidator(Path.expanduser)]
SwapMode = Annotated[
    Literal["proactive", "on_demand", "blocking", "off"],
    # YAML takes a plain off for false.
    BeforeValidator(lambda value: "off" if value is False else value),
]
POLICY = PolicyConfig()


class Section(BaseModel):
    """A part of the file: never changed after loading, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSection(Section):
    """A model to serve: the id that requests name, and where its weights come from."""

    id: Name
    source: str
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    max_model_len: Positive | None = None


class ParallelSection(Section):
    """How a group cuts its models: pipeline stages times tensor ranks.

    ``layer_split`` are the layers of each stage, as even as can be if absent.
    """

    pipeline: Positive = 1
    tensor: Positive = 1
    layer_split: list[Positive] | None = None


class PolicySection(Section):
    """Who runs first, as :class:`fabric.scheduler.policies.PolicyConfig` explains."""

    name: PolicyName = POLICY.name
    quantum_s: Seconds | None = POLICY.quantum_s
    quantum_ratio: Annotated[float, Field(gt=1)] = POLICY.quantum_ratio
    alpha_s: NotNegative = POLICY.alpha_s
    alpha_load: NotNegative = POLICY.alpha_load
    ageing: NotNegative = POLICY.ageing
    min_run_s: NotNegative = POLICY.min_run_s


class SwapSection(Section):
    """Where the KV blocks of requests that give way are parked, and when they move."""

    host: ByteSize = ByteSize(2**30)
    disk: ByteSize = ByteSize(0)
    disk_dir: HomePath | None = None
    mode: SwapMode = "proactive"
    preemption: Literal["auto", "swap", "recompute"] = "auto"
    timeout_s: Seconds = 30.0
    debug: bool = False

    def parking_settings(self) -> ParkingSettings:
        """The memory to park blocks in; what serves keeps it when a worker dies."""
        is_on = self.mode != "off"
        return ParkingSettings(
            host_bytes=is_on * int(self.host),
            disk_bytes=is_on * int(self.disk),
            disk_dir=self.disk_dir,
            keep=True,
            debug=self.debug,
        )


class GroupSection(Section):
    """A device group: which models it hosts, and how much it takes."""

    name: Name
    models: Annotated[list[Name], Field(min_length=1, max_length=1)]
    parallel: ParallelSection = ParallelSection()
    device: Literal["cpu"] = "cpu"
    kv_cache: ByteSize = ByteSize(512 * 2**20)
    block_size: Literal[1, 2, 4, 8, 16, 32, 64, 128] = 16
    max_num_seqs: Positive = 64
    max_num_batched_tokens: Positive = 512
    max_num_waiting: Positive = 1024
    prefix_cache: bool = True
    policy: PolicySection = PolicySection()
    swap: SwapSection = SwapSection()
    profile: HomePath | None = None
    num_threads: Positive | None = None
    num_cpus: Annotated[float, Field(gt=0)] = 1.0
    resources: dict[str, Annotated[float, Field(gt=0)]] = {}

    def scheduler_config(self) -> SchedulerConfig:
        """What the group's scheduler is told."""
        return SchedulerConfig(
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            max_num_waiting=self.max_num_waiting,
            policy=PolicyConfig(**self.policy.model_dump()),
            swap="proactive" if self.swap.mode == "off" else self.swap.mode,
            preemption=self.swap.preemption,
            transfer_timeout_s=self.swap.timeout_s,
        )


class TlsSection(Section):
    """Certificates, as PEM files; with ``client_ca`` clients must show one too."""

    cert: HomePath
    key: HomePath
    client_ca: HomePath | None = None


class RouterSection(Section):
    """The gRPC front: where it listens, and what it lets in."""

    host: str = "127.0.0.1"
    port: Port = 50051
    num_replicas: Positive = 1
    max_message: ByteSize = ByteSize(8 * 2**20)
    max_inflight: Positive = 1024
    stall_after_s: Annotated[float, Field(gt=0)] = 10.0
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


class FabricConfig(Section):
    """Everything that `fabric serve` reads."""

    name: Name = "fabric"
    models: Annotated[list[ModelSection], Field(min_length=1)]
    groups: Annotated[list[GroupSection], Field(min_length=1)]
    router: RouterSection = RouterSection()
    ray: RaySection = RaySection()
    link_host: str | None = None
    cache_dir: HomePath = Field(default_factory=default_cache_dir)
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        ids = [model.id for model in self.models]
        names = [group.name for group in self.groups]
        for kind, values in (("models", ids), ("groups", names)):
            twice = sorted({value for value in values if values.count(value) > 1})
            if twice:
                raise ValueError(f"{kind}: {twice[0]!r} is named twice")
        hosted = {model: group.name for group in self.groups for model in group.models}
        for model, group_name in hosted.items():
            if model not in ids:
                raise ValueError(f"groups: {group_name!r} hosts {model!r}, not one of {ids}")
        for model in ids:
            if model not in hosted:
                raise ValueError(f"models: no group hosts {model!r}")
        return self

    def engine_settings(self, group: GroupSection) -> EngineSettings:
        """What a group's engine is built from."""
        model = next(model for model in self.models if model.id == group.models[0])
        return EngineSettings(
            worker=WorkerSettings(
                model=model.id,
                source=model.source,
                cache_dir=self.cache_dir,
                device=group.device,
                dtype=model.dtype,
                max_model_len=model.max_model_len,
                kv_cache_bytes=int(group.kv_cache),
                block_size=group.block_size,
                num_threads=group.num_threads,
                parking=group.swap.parking_settings(),
            ),
            scheduler=group.scheduler_config(),
            prefix_cache=group.prefix_cache,
            parallel=ParallelConfig(group.parallel.pipeline, group.parallel.tensor),
            layer_split=tuple(group.parallel.layer_split) if group.parallel.layer_split else None,
            profile=group.profile,
        )

    def router_settings(self, link_secret: str) -> RouterSettings:
        """What a router is built from."""
        tls = self.router.tls
        return RouterSettings(
            host=self.router.host,
            port=self.router.port,
            model_ids=tuple(model.id for model in self.models),
            link_secret=link_secret,
            max_message_bytes=int(self.router.max_message),
            max_inflight=self.router.max_inflight,
            stall_after_s=self.router.stall_after_s,
            reflection=self.router.reflection,
            metrics_host=self.router.metrics_host,
            metrics_port=self.router.metrics_port,
            tls=None if tls is None else TlsSettings(tls.cert, tls.key, tls.client_ca),
        )


def load_config(path: Path, overrides: tuple[str, ...] = ()) -> FabricConfig:
    """Read and check a configuration file.

    Args:
        path: A YAML file.
        overrides: ``a.b=c`` settings put on top; list elements by number, values in YAML.

    Raises:
        ConfigError: The file can't be read or parsed, or keys or values are wrong; names each.
    """
    try:
        tree = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: holds {type(tree).__name__}; a mapping is needed")
    for override in overrides:
        _override(tree, override)
    return parse_config(tree, str(path))


def parse_config(tree: object, origin: str) -> FabricConfig:
    """Check a configuration that is already a tree of mappings and lists.

    Raises:
        ConfigError: Keys or values are wrong; names the path of each.
    """
    try:
        return FabricConfig.model_validate(tree)
    except ValidationError as error:
        problems = [
            f"{'.'.join(str(part) for part in item['loc']) or 'file'}: {item['msg']}"
            + ("" if item["type"] in ("missing", "value_error") else f" (is {item['input']!r:.80})")
            for item in error.errors()
        ]
        raise ConfigError(f"{origin}: " + "; ".join(problems)) from error


def _override(tree: object, override: str) -> None:
    path, equals, text = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise ConfigError(f"--set {override}: expected a.b=value")
    node = tree
    for key in keys[:-1]:
        node = _child(node, key, override)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: {text!r} is not YAML") from error
    if isinstance(node, dict):
        node[keys[-1]] = value
    elif isinstance(node, list) and keys[-1].isdecimal() and int(keys[-1]) < len(node):
        node[int(keys[-1])] = value
    else:
        raise ConfigError(f"--set {override}: {keys[-1]!r} is not a place in the file")


def _child(node: object, key: str, override: str) -> object:
    if isinstance(node, dict):
        return node.setdefault(key, {})
    if isinstance(node, list) and key.isdecimal() and int(key) < len(node):
        return node[int(key)]
    raise ConfigError(f"--set {override}: {key!r} is not a place in the file")
