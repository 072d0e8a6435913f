"""AlpaServe's synthetic experiments as the request-level simulator and the search take them."""

from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from fabric.core.errors import ConfigError
from fabric.core.plan import ParallelConfig
from placement.alpaserve.profile import (
    BUDGET_BYTES,
    CONFIGS,
    OVERHEAD_S,
    V100Profile,
    device_bytes,
)
from placement.alpaserve.workload import merged_arrivals, power_law_rates
from placement.simulator.service import KindRequests, ServiceTimes

MIXED = ("bert-6.7b", "moe-5.3b", "bert-2.6b", "moe-2.4b", "bert-1.3b", "moe-1.3b")
BERT = ("bert-6.7b", "bert-2.6b", "bert-1.3b")
ALIGN = ("bert-2.6b",)
# Model number i of a set is of the type i modulo the number of types.
SETS = MappingProxyType(
    {"mixed": MIXED, "bert": BERT, "align-bert2.6b-sim": ALIGN, "align-bert2.6b-real": ALIGN}
)
# In the comparison with the real cluster, groups that cut operators over four GPUs were simulated
# to meet 0.333, 0.532 and 0.647 of the objectives at 0.5, 1 and 1.5 times the latency (AlpaServe,
# table 2). 0.0885 s gives all three within 0.001; what was recovered from the other experiments
# gives none within 0.006.
ALIGN_OP4_S = 0.0885


@dataclass(frozen=True, slots=True)
class Case:
    """One experiment: the set and number of models, their total rate, burstiness, objectives.

    An objective is ``slo_scale`` times what the model takes alone on one GPU.
    """

    models: str
    num_models: int
    rate_per_s: float
    cv: float
    slo_scale: float
    duration_s: float = 200.0

    def __post_init__(self) -> None:
        if self.models not in SETS:
            raise ConfigError(f"models is {self.models!r}; one of {', '.join(SETS)} is needed")

    @property
    def types(self) -> tuple[str, ...]:
        """The type of each model."""
        types = SETS[self.models]
        return tuple(types[model % len(types)] for model in range(self.num_models))


def case_requests(case: Case, profile: V100Profile, seed: int = 0) -> KindRequests:
    """The case's requests; each model is a kind. Seed 0 gives those of the published results."""
    rates = power_law_rates(case.num_models, case.rate_per_s)
    arrivals, models = merged_arrivals(rates, case.cv, case.duration_s, seed)
    latencies = [profile.latency_s(kind) for kind in case.types]
    return KindRequests(
        arrivals_s=arrivals,
        kinds=models,
        kind_models=np.arange(case.num_models, dtype=np.int32),
        slo_s=(case.slo_scale * np.array(latencies)).astype(np.float32),
        num_models=case.num_models,
    )


def case_times(
    case: Case, profile: V100Profile, configs: tuple[ParallelConfig, ...] = CONFIGS
) -> ServiceTimes:
    """The case's service times and weights, on groups of the configurations given."""
    if case.models.startswith("align"):
        profile = profile.changed("bert-2.6b", "op4", ALIGN_OP4_S)
    max_stages = max(config.pipeline for config in configs)
    shape = (len(configs), case.num_models)
    stages = np.zeros((*shape, max_stages), dtype=np.float32)
    weights = np.zeros(shape)
    for row, config in enumerate(configs):
        for model, kind in enumerate(case.types):
            stages[row, model, : config.pipeline] = profile.stages_s(kind, config)
            weights[row, model] = device_bytes(kind, config)
    return ServiceTimes(
        stages_s=stages,
        num_stages=np.array([config.pipeline for config in configs], dtype=np.int32),
        delay_s=np.zeros(shape, dtype=np.float32),
        overhead_s=OVERHEAD_S,
        model_bytes=weights,
        budget_bytes=np.full(len(configs), float(BUDGET_BYTES)),
        num_devices=np.array([config.num_devices for config in configs], dtype=np.int32),
    )
