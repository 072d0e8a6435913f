"""A device group that really runs a model, and its twin in the simulator."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fabric.config import FabricConfig, parse_config
from fabric.core.plan import ModelShare, ParallelConfig
from fabric.core.profile import Profile
from fabric.core.request import LoadReport
from placement.cost.model import ModelCost
from placement.simulator.iteration_level import SimulatedGroup, SimulatedModel
from placement.workload.trace import Trace

MAX_MODEL_LEN = 512
# stories260K: layers, keys and values, KV heads, head size, bytes of a number.
KV_TOKEN_BYTES = 5 * 2 * 4 * 8 * 4
# Any times will do: what an iteration is made of doesn't depend on them.
PROFILE = Profile(prefill=((1, 0.01), (512, 0.05)), decode=((1, 32, 0.01), (8, 32, 0.02)))


def config_of(stories: Path, models: Sequence[str], cache: Path, **group: object) -> FabricConfig:
    """A fabric of one group that serves stories260K by some names."""
    limits: dict[str, object] = {
        "max_num_seqs": 8,
        "num_threads": 1,
        "num_cpus": 0.5,
        "prefix_cache": False,
        "swap": {"mode": "off"},
        # Service is shared by what iterations took, which no two runs agree on.
        "fairness": {"lag_s": None},
    }
    source = {"source": str(stories), "dtype": "float32", "max_model_len": MAX_MODEL_LEN}
    return parse_config(
        {
            "models": [{"id": name, **source} for name in models],
            "groups": [{"name": "g0", "models": list(models), **limits, **group}],
            "router": {"port": 0},
            "cache_dir": str(cache),
        },
        "test",
    )


def twin_of(config: FabricConfig, report: LoadReport) -> SimulatedGroup:
    """The simulated group with the same memory, models and scheduler."""
    group = config.groups[0]
    models = tuple(
        SimulatedModel(
            ModelShare(model.model),
            ModelCost(PROFILE, (1.0,), (model.weight_bytes,), (KV_TOKEN_BYTES,)),
            MAX_MODEL_LEN,
        )
        for model in report.models
    )
    return SimulatedGroup(
        group.name,
        ParallelConfig(),
        models,
        memory_bytes=report.num_slabs * report.slab_bytes,
        block_size=group.block_size,
        scheduler=group.scheduler_config(),
        slab_bytes=report.slab_bytes,
    )


def requests_of(models: Sequence[str], num_requests: int, gap_s: float, seed: int = 1) -> Trace:
    """Requests for all models, of lengths that differ much."""
    rng = np.random.default_rng(seed)
    arrivals_s = np.arange(num_requests) * gap_s
    return Trace(
        tuple(models),
        float(arrivals_s[-1]),
        arrivals_s,
        rng.integers(len(models), size=num_requests, dtype=np.int32),
        rng.integers(2, 120, size=num_requests, dtype=np.int32),
        rng.integers(1, 60, size=num_requests, dtype=np.int32),
    )
