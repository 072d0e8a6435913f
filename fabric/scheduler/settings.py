"""What one scheduler is told."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from fabric.core.errors import ConfigError
from fabric.scheduler.policies import PolicyConfig


@dataclass(frozen=True, slots=True)
class FairnessConfig:
    """How service is shared among models and tenants that all have work.

    Each (model, tenant) is owed service in proportion to the product of its ``model_weights`` and
    ``tenant_weights`` (1 where nothing is said). Whoever has had ``lag_s`` seconds of service (at
    weight 1) more than another ranks after it, whatever the policy says, within a priority; None:
    the policy alone decides.
    """

    lag_s: float | None = 0.05
    model_weights: Mapping[str, float] = field(default_factory=dict)
    tenant_weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.lag_s is not None and not self.lag_s > 0.0:
            raise ConfigError(f"lag_s is {self.lag_s:g}; above 0 is needed, or nothing")
        for kind in ("model_weights", "tenant_weights"):
            for name, weight in getattr(self, kind).items():
                if not weight > 0.0:
                    raise ConfigError(f"{kind}: {name!r} has {weight:g}; above 0 is needed")


@dataclass(frozen=True, slots=True)
class ResidencyConfig:
    """When weights come and go.

    A model without work leaves the device after ``idle_s`` (None: only for others' sake). Host
    memory keeps ``host_bytes`` of weights. A model that was loaded stays ``min_stay`` times as
    long as its load took before another one may have its place while it has work.
    """

    idle_s: float | None = 300.0
    host_bytes: int = 0
    min_stay: float = 4.0


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Limits of one scheduler.

    ``max_num_seqs`` bounds running sequences, ``max_num_batched_tokens`` the tokens of one
    iteration, ``max_num_waiting`` the queue, ``max_model_len`` prompt and output together;
    ``watermark`` is the share of blocks that admission leaves free for those that run.
    ``num_batches`` iterations may be in flight, one for each pipeline stage; the running
    sequences are shared out among them. ``policy`` says who goes first. ``swap`` is when blocks
    move off the device, if there is where to, and ``preemption`` what becomes of a victim; a
    transfer that takes longer than ``transfer_timeout_s`` counts as failed.

    With ``async_scheduling`` the next iteration is scheduled, and handed to the workers, while one
    runs: a sequence that gets a token there is taken to go on. Devices then don't wait for the
    scheduler, nor for text to be made; but who comes, or should give way, waits for up to an
    iteration more, and one that turns out to have ended is computed once in vain. Several pipeline
    stages have iterations in flight anyway, and are served as without it. None: where devices are
    no processors.
    """

    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    max_num_waiting: int = 1024
    watermark: float = 0.01
    max_model_len: int = 2048
    num_batches: int = 1
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    swap: Literal["proactive", "on_demand", "blocking"] = "proactive"
    preemption: Literal["auto", "swap", "recompute"] = "auto"
    transfer_timeout_s: float = 30.0
    fairness: FairnessConfig = field(default_factory=FairnessConfig)
    residency: ResidencyConfig = field(default_factory=ResidencyConfig)
    async_scheduling: bool | None = None

    @property
    def runs_ahead(self) -> bool:
        """Whether iterations are scheduled whose tokens are not known yet."""
        return self.async_scheduling is True and self.num_batches == 1

    def settled_for(self, device: str) -> "SchedulerConfig":
        """The same with nothing left open: processors share their cores with the scheduler."""
        if self.async_scheduling is not None:
            return self
        return replace(self, async_scheduling=device != "cpu")

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_waiting", "max_model_len", "num_batches"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; at least 1 is needed")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"max_num_batched_tokens is {self.max_num_batched_tokens}; each of max_num_seqs = "
                f"{self.max_num_seqs} running sequences needs a token in every iteration"
            )
        if self.transfer_timeout_s <= 0.0:
            raise ConfigError(f"transfer_timeout_s is {self.transfer_timeout_s}; above 0 is needed")
        if not 0.0 <= self.watermark < 1.0:
            raise ConfigError(f"watermark is {self.watermark}; allowed: 0 up to, not with, 1")
