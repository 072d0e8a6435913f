"""What a configuration file says about device groups."""

import json
from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, ByteSize, Field, model_validator

from fabric.config.sections import (
    HomePath,
    ModelSection,
    Name,
    NotNegative,
    Positive,
    Seconds,
    Section,
)
from fabric.core.plan import GroupPlan, ModelShare, ParallelConfig
from fabric.engine.settings import ParkingSettings
from fabric.scheduler.policies import PolicyConfig, PolicyName
from fabric.scheduler.settings import FairnessConfig, ResidencyConfig, SchedulerConfig

Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(gt=0)]
SwapMode = Annotated[
    Literal["proactive", "on_demand", "blocking", "off"],
    # YAML takes a plain off for false.
    BeforeValidator(lambda value: "off" if value is False else value),
]
# A GPU by its number among those that the process sees, which Ray may have chosen.
DEVICES = r"^(cpu|cuda(:\d+)?)$"
POLICY = PolicyConfig()
FAIRNESS = FairnessConfig()
RESIDENCY = ResidencyConfig()
# What host memory keeps of weights where several models take turns on the devices.
HOST_WEIGHT_BYTES = 4 * 2**30


class HostedSection(Section):
    """A model of a group, and what it may take of it, as ModelShare explains."""

    id: Name
    min_share: Share = 0.0
    max_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    weight: Weight = 1.0
    pinned: bool = False
    starts: Literal["resident", "host", "cold"] = "resident"
    profile: HomePath | None = None

    @model_validator(mode="after")
    def _check_shares(self) -> Self:
        if self.min_share > self.max_share:
            raise ValueError(f"min_share is {self.min_share:g}, max_share {self.max_share:g}")
        return self

    def share(self) -> ModelShare:
        """The same as part of a plan."""
        return ModelShare(
            self.id, self.min_share, self.max_share, self.weight, self.pinned, self.starts
        )


Hosted = Annotated[
    HostedSection, BeforeValidator(lambda value: {"id": value} if isinstance(value, str) else value)
]


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


class FairnessSection(Section):
    """How service is shared, as :class:`fabric.scheduler.settings.FairnessConfig` explains."""

    lag_s: Seconds | None = FAIRNESS.lag_s
    tenants: dict[str, Weight] = Field(default_factory=dict)


class WeightsSection(Section):
    """Where weights wait that are not on the device, and when they leave it.

    ``host`` None: 4 GiB if the group has several models, nothing if it has one. A model that has
    the device to itself stays there, whatever ``idle_s`` says.
    """

    host: ByteSize | None = None
    dir: HomePath | None = None
    idle_s: Seconds | None = RESIDENCY.idle_s
    min_stay: NotNegative = RESIDENCY.min_stay


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
    """A device group: which models it hosts, and how much it takes.

    ``async_scheduling``: whether its scheduler prepares the next iteration while one runs, as
    :class:`fabric.scheduler.settings.SchedulerConfig` says; None: where devices are no processors.
    """

    name: Name
    models: Annotated[list[Hosted], Field(min_length=1)]
    parallel: ParallelSection = ParallelSection()
    device: Annotated[str, Field(pattern=DEVICES)] = "cpu"
    cuda_graphs: bool = True
    memory: ByteSize | None = None
    kv_cache: ByteSize = ByteSize(512 * 2**20)
    slab: ByteSize | None = None
    weights: WeightsSection = WeightsSection()
    block_size: Literal[1, 2, 4, 8, 16, 32, 64, 128] = 16
    max_num_seqs: Positive = 64
    max_num_batched_tokens: Positive = 512
    max_num_waiting: Positive = 1024
    async_scheduling: bool | None = None
    prefix_cache: bool = True
    policy: PolicySection = PolicySection()
    fairness: FairnessSection = FairnessSection()
    swap: SwapSection = SwapSection()
    profile: HomePath | None = None
    num_threads: Positive | None = None
    num_cpus: Annotated[float, Field(gt=0)] = 1.0
    resources: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_models(self) -> Self:
        ids = self.model_ids
        if self.device != "cpu" and self.parallel.pipeline * self.parallel.tensor > 1:
            raise ValueError(
                f"device: {self.device} is one GPU; groups of several devices need cpu"
            )
        if twice := sorted({model for model in ids if ids.count(model) > 1}):
            raise ValueError(f"models: {twice[0]!r} is named twice")
        kept = sum(model.min_share for model in self.models)
        # Shares such as ten times 0.1 don't add up to 1 in binary.
        if kept > 1.0 + 1e-9:
            raise ValueError(f"models: the min_share of all is {kept:g}; at most 1 is there")
        if self.profile is not None and len(ids) > 1:
            raise ValueError("profile: is of one model; give each of the group's models its own")
        return self

    @property
    def model_ids(self) -> tuple[str, ...]:
        """The models that it hosts."""
        return tuple(model.id for model in self.models)

    @property
    def host_weight_bytes(self) -> int:
        """What host memory keeps of weights."""
        default = HOST_WEIGHT_BYTES if len(self.models) > 1 else 0
        return default if self.weights.host is None else int(self.weights.host)

    def plan(self, models: Sequence[ModelSection]) -> GroupPlan:
        """The same as part of a plan.

        Args:
            models: At least those that it hosts.
        """
        wishes = self.model_dump(mode="json", exclude={"name", "models"})
        wishes["profiles"] = [str(hosted.profile) for hosted in self.models]
        # What a router goes by changes without a new group.
        wishes["models"] = [
            model.model_dump(mode="json", exclude={"objectives"})
            for model in sorted(models, key=lambda model: model.id)
            if model.id in self.model_ids
        ]
        return GroupPlan(
            self.name,
            ParallelConfig(self.parallel.pipeline, self.parallel.tensor),
            tuple(hosted.share() for hosted in self.models),
            json.dumps(wishes, sort_keys=True),
        )

    def scheduler_config(self) -> SchedulerConfig:
        """What the group's scheduler is told."""
        weights = {model.id: model.weight for model in self.models}
        config = SchedulerConfig(
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            max_num_waiting=self.max_num_waiting,
            policy=PolicyConfig(**self.policy.model_dump()),
            swap="proactive" if self.swap.mode == "off" else self.swap.mode,
            preemption=self.swap.preemption,
            transfer_timeout_s=self.swap.timeout_s,
            fairness=FairnessConfig(self.fairness.lag_s, weights, self.fairness.tenants),
            residency=ResidencyConfig(
                self.weights.idle_s if len(self.models) > 1 else None,
                self.host_weight_bytes,
                self.weights.min_stay,
            ),
            async_scheduling=self.async_scheduling,
        )
        return config.settled_for(self.device)
