"""AlpaServe's synthetic experiments as the request-level simulator and the search take them."""

import re
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

# Model number i of a set is of the type i modulo the number of types.
SETS = MappingProxyType(
    {
        "mixed": ("bert-6.7b", "moe-5.3b", "bert-2.6b", "moe-2.4b", "bert-1.3b", "moe-1.3b"),
        "bert": ("bert-6.7b", "bert-2.6b", "bert-1.3b"),
        "moe": ("moe-5.3b", "moe-2.4b", "moe-1.3b"),
    }
)
# Models of one type, simulated or on the real cluster.
ALIGN = re.compile(r"align-(bert|moe)(\d+\.\d+b)-(?:sim|real)")
# In the comparison with the real cluster, groups that cut operators over four GPUs were simulated
# to meet 0.333, 0.532 and 0.647 of the objectives at 0.5, 1 and 1.5 times the latency (AlpaServe,
# table 2). 0.0885 s gives all three within 0.001; what was recovered from the other experiments
# gives none within 0.006.
ALIGN_OP4_S = 0.0885


@dataclass(frozen=True, slots=True)
class Case:
    """One experiment: the set and number of models, their total rate, burstiness, objectives.

    An objective is ``slo_scale`` times what the model takes alone on one GPU. ``models`` is one of
    SETS, or as in ``align-bert2.6b-sim`` (or ``-real``) the only type there is.
    """

    models: str
    num_models: int
    rate_per_s: float
    cv: float
    slo_scale: float
    duration_s: float = 200.0

    def __post_init__(self) -> None:
        set_types(self.models)

    @property
    def types(self) -> tuple[str, ...]:
        """The type of each model."""
        types = set_types(self.models)
        return tuple(types[model % len(types)] for model in range(self.num_models))


def set_types(name: str) -> tuple[str, ...]:
    """The types of models in a set, which take turns.

    Raises:
        ConfigError: There is no such set.
    """
    if only := ALIGN.fullmatch(name):
        return (f"{only[1]}-{only[2]}",)
    if name not in SETS:
        allowed = ", ".join((*SETS, "align-TYPE-sim", "align-TYPE-real"))
        raise ConfigError(f"models is {name!r}; one of {allowed} is needed")
    return SETS[name]


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
    if ALIGN.fullmatch(case.models) and "bert-2.6b" in case.types:
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
