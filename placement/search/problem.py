"""What a search is asked: requests, what they cost where, and the devices there are."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fabric.core.errors import ConfigError
from placement.groups import Group
from placement.simulator.service import KindRequests, ServiceTimes
from placement.workload.trace import FloatArray

Groups = tuple[Group, ...]
"""A placement while it is searched: in ascending order, so that equal ones look equal."""


@dataclass(frozen=True, eq=False)
class Problem:
    """Requests to serve, configurations to choose from, and devices of each type to use.

    ``config_types`` is the type of device that each configuration of ``times`` takes, an index
    into ``num_devices``, which says how many there are of each type.

    Raises:
        ConfigError: A configuration's type is not known, or the numbers' lengths differ.
    """

    requests: KindRequests
    times: ServiceTimes
    config_types: tuple[int, ...]
    num_devices: tuple[int, ...]

    def __post_init__(self) -> None:
        num_configs = len(self.times.num_devices)
        if len(self.config_types) != num_configs:
            raise ConfigError(
                f"config_types has {len(self.config_types)} entries, not {num_configs}, one "
                "for each configuration"
            )
        for kind in self.config_types:
            if not 0 <= kind < len(self.num_devices):
                raise ConfigError(
                    f"config_types has {kind}; there are {len(self.num_devices)} types of devices"
                )

    @classmethod
    def of_one_type(
        cls, requests: KindRequests, times: ServiceTimes, num_devices: int
    ) -> "Problem":
        """A problem whose devices are all alike."""
        return cls(requests, times, (0,) * len(times.num_devices), (num_devices,))

    @property
    def num_models(self) -> int:
        """Models that requests are for."""
        return self.requests.num_models

    @property
    def num_configs(self) -> int:
        """Configurations to choose from."""
        return len(self.config_types)

    @cached_property
    def sizes(self) -> list[int]:
        """Devices that each configuration takes."""
        return [int(size) for size in self.times.num_devices]

    @cached_property
    def model_bytes(self) -> list[list[float]]:
        """Bytes of each configuration's models, infinite where a model can't be."""
        is_possible = self.model_latency_s < np.inf
        rows = np.where(is_possible, self.times.model_bytes, np.inf)
        return [[float(size) for size in row] for row in rows]

    @cached_property
    def budget_bytes(self) -> list[float]:
        """Bytes of each configuration that its models may sum to."""
        return [float(size) for size in self.times.budget_bytes]

    @cached_property
    def kind_counts(self) -> FloatArray:
        """Requests of each kind."""
        kinds = self.requests.kinds
        return np.bincount(kinds, minlength=len(self.requests.kind_models)).astype(np.float64)

    @cached_property
    def model_counts(self) -> FloatArray:
        """Requests of each model."""
        counts = np.zeros(self.num_models)
        np.add.at(counts, self.requests.kind_models, self.kind_counts)
        return counts

    @cached_property
    def model_latency_s(self) -> FloatArray:
        """``[num_configs, num_models]`` seconds of a mean request that waits for nobody."""
        stages = np.arange(self.times.stages_s.shape[-1])
        is_stage = stages < self.times.num_stages[:, None]
        stages_s = np.where(is_stage[:, None, :], self.times.stages_s.astype(np.float64), 0.0)
        kind_s = stages_s.sum(axis=-1) + self.times.delay_s
        weights = np.maximum(self.kind_counts, 1e-9)
        latency_s = np.zeros((self.num_configs, self.num_models))
        totals = np.zeros(self.num_models)
        np.add.at(totals, self.requests.kind_models, weights)
        for kind, model in enumerate(self.requests.kind_models):
            latency_s[:, model] += kind_s[:, kind] * weights[kind]
        return latency_s / np.maximum(totals, 1e-9)

    def fits(self, config: int, models: Sequence[int]) -> bool:
        """Whether a group of that configuration has the memory for the models."""
        model_bytes = self.model_bytes[config]
        return sum(model_bytes[model] for model in models) <= self.budget_bytes[config]

    def room(self, group: Group) -> float:
        """Bytes of a group that no model takes."""
        model_bytes = self.model_bytes[group.config]
        return self.budget_bytes[group.config] - sum(model_bytes[model] for model in group.models)

    def used_devices(self, configs: Sequence[int]) -> list[int]:
        """Devices of each type that groups of such configurations take."""
        used = [0] * len(self.num_devices)
        for config in configs:
            used[self.config_types[config]] += self.sizes[config]
        return used

    def check(self, groups: Sequence[Group]) -> None:
        """Raise ConfigError, saying why, unless devices and memory suffice for the groups."""
        used = self.used_devices([group.config for group in groups])
        for kind, (taken, there) in enumerate(zip(used, self.num_devices, strict=True)):
            if taken > there:
                raise ConfigError(f"groups take {taken} devices of type {kind}; there are {there}")
        for group in groups:
            if len(set(group.models)) < len(group.models):
                raise ConfigError(f"a model is twice in {group}")
            if not self.fits(group.config, group.models):
                raise ConfigError(f"the models of {group} don't fit its memory")
