"""The whole of the planner's input, and what its parts say together."""

from typing import Annotated, Literal, Self

from pydantic import ByteSize, Field, model_validator

from fabric.router.policy import RoutingName
from fabric.scheduler.policies import PolicyConfig, PolicyName
from fabric.scheduler.settings import SchedulerConfig
from placement.config.devices import DeviceSection, DeviceTypeSection
from placement.config.models import ModelSection
from placement.config.values import Count, Name, NotNegative, Positive, Section, Share
from placement.config.workload import WorkloadSection


class SearchSection(Section):
    """What the search may choose from, and how long it may take.

    ``group_sizes`` None: powers of two. ``num_requests`` bounds those of the draw that it sees.
    """

    budget_s: Positive = 60.0
    beam: Count = 1
    group_sizes: Annotated[list[Count], Field(min_length=1)] | None = None
    max_pipeline: Count = 8
    max_tensor: Count = 8
    is_uneven: bool = True
    num_requests: Count = 30_000
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


class ServingSection(Section):
    """How device groups serve, as in the configuration of ``fabric serve``.

    Weights and KV may take ``memory_share`` of each device. ``host`` is a node's memory for parked
    KV and for weights that are not on the devices. ``num_threads`` are those of each device that is
    a processor.
    """

    memory_share: Share = 0.9
    host: ByteSize = ByteSize(0)
    block_size: Literal[1, 2, 4, 8, 16, 32, 64, 128] = 16
    max_num_seqs: Count = 256
    max_num_batched_tokens: Count = 2048
    num_threads: Count | None = None
    policy: PolicyName = "fcfs"
    routing: RoutingName = "predicted"
    router_s: NotNegative = 0.0

    def scheduler_config(self) -> SchedulerConfig:
        """What a group's scheduler is told."""
        return SchedulerConfig(
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            policy=PolicyConfig(name=self.policy),
        )


class PlanInput(Section):
    """Everything that ``fabric-plan`` reads.

    ``target`` is the attainment to reach; ``slo_scale`` is for models that say nothing themselves.
    """

    devices: Annotated[list[DeviceSection], Field(min_length=1)]
    device_types: dict[Name, DeviceTypeSection] = Field(default_factory=dict)
    models: Annotated[list[ModelSection], Field(min_length=1)]
    workload: WorkloadSection = Field(default_factory=WorkloadSection)
    target: Share = 0.99
    slo_scale: Positive = 5.0
    search: SearchSection = SearchSection()
    serving: ServingSection = ServingSection()

    @model_validator(mode="after")
    def _check(self) -> Self:
        ids, types = self.model_ids, [device.type for device in self.devices]
        for kind, values in (("models", ids), ("devices", types)):
            if twice := sorted({value for value in values if values.count(value) > 1}):
                raise ValueError(f"{kind}: {twice[0]!r} is named twice")
        popularity = self.workload.popularity
        for index, model in enumerate(self.models):
            if popularity and popularity.power_law is not None and model.share is not None:
                raise ValueError(f"models.{index}.share: workload.popularity.power_law gives it")
        if self.workload.arrivals != "trace":
            self.rates_per_s()
        return self

    @property
    def model_ids(self) -> tuple[str, ...]:
        """The models to place, in the order of the file."""
        return tuple(model.id for model in self.models)

    @property
    def num_devices(self) -> int:
        """All devices, of all types."""
        return sum(device.count for device in self.devices)

    def shares(self) -> tuple[float, ...]:
        """What part of all requests is each model's; they sum to 1.

        They are of the models' rates if they have such, else of the popularity.
        """
        weights = [self._weight(index, model) for index, model in enumerate(self.models)]
        return tuple(weight / sum(weights) for weight in weights)

    def rates_per_s(self) -> tuple[float, ...]:
        """The models' rates, before ``rate_scale``.

        Raises:
            ValueError: Neither a model nor the popularity says one.
        """
        popularity = self.workload.popularity
        if popularity is not None:
            for index, model in enumerate(self.models):
                if model.rate_per_s is not None:
                    raise ValueError(f"models.{index}.rate_per_s: workload.popularity gives it")
            return tuple(popularity.total_rate_per_s * share for share in self.shares())
        for index, model in enumerate(self.models):
            if model.rate_per_s is None:
                raise ValueError(f"models.{index}.rate_per_s: is needed, or workload.popularity")
        return tuple(model.rate_per_s or 0.0 for model in self.models)

    def _weight(self, index: int, model: ModelSection) -> float:
        popularity = self.workload.popularity
        if popularity is not None and popularity.power_law is not None:
            return float((index + 1) ** -popularity.power_law)
        return model.rate_per_s or model.share or 1.0
