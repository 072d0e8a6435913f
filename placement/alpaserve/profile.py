"""Service times and sizes of AlpaServe's models on its V100s."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from fabric.core.errors import ConfigError
from fabric.core.plan import ParallelConfig

OVERHEAD_S = 0.011
SLOWDOWN_PER_STAGE = 0.009
BUDGET_BYTES = 13 * 2**30

CONFIGS = (
    ParallelConfig(1, 1),
    ParallelConfig(2, 1),
    ParallelConfig(4, 1),
    ParallelConfig(8, 1),
    ParallelConfig(1, 2),
    ParallelConfig(1, 4),
)

# Billions of bytes of the fullest device times the number of devices, by pipeline stages. These
# aren't the paper's sizes (2.4, 5.4, 13.4, 2.6, 4.8, 10.6): with them, groups that its greedy
# search left full would have had room, as stages are uneven. All of its placements fit in
# BUDGET_BYTES with these, and no model could be added to the groups of its greedy searches.
# Pipelines of two are too few to tell; they are taken to be even.
EVEN_GB: Mapping[str, float] = MappingProxyType(
    {
        "bert-1.3b": 2.859,
        "bert-2.6b": 5.56,
        "bert-6.7b": 13.661,
        "moe-1.3b": 2.74,
        "moe-2.4b": 4.805,
        "moe-5.3b": 10.841,
    }
)
UNEVEN_GB: Mapping[int, Mapping[str, float]] = MappingProxyType(
    {
        4: {
            "bert-1.3b": 2.97,
            "bert-2.6b": 5.94,
            "bert-6.7b": 14.04,
            "moe-1.3b": 2.84,
            "moe-2.4b": 4.86,
            "moe-5.3b": 10.94,
        },
        8: {
            "bert-1.3b": 3.32,
            "bert-2.6b": 5.9,
            "bert-6.7b": 15.18,
            "moe-1.3b": 3.0,
            "moe-2.4b": 5.2,
            "moe-5.3b": 11.42,
        },
    }
)


@dataclass(frozen=True, slots=True)
class V100Profile:
    """Seconds that each type of model takes, whole and cut.

    ``latencies_s`` of a type: ``L1`` is one GPU's, ``op2`` and ``op4`` those of operators cut over
    so many, ``ppNS`` and ``ppNM`` a pipeline's sum and slowest stage. They were recovered from
    published attainments; ``op2`` and the pipelines of two are hardly determined by them.
    """

    latencies_s: Mapping[str, Mapping[str, float]]

    def latency_s(self, kind: str) -> float:
        """On one GPU, which objectives are multiples of."""
        return self._seconds(kind, "L1")

    def stages_s(self, kind: str, config: ParallelConfig) -> tuple[float, ...]:
        """How long a request keeps each stage, the slowest last; the others share the rest evenly.

        Raises:
            ConfigError: The profile doesn't know the type or the configuration.
        """
        num_stages = config.pipeline
        slowdown = 1.0 + SLOWDOWN_PER_STAGE * num_stages
        if num_stages == 1:
            name = "L1" if config.tensor == 1 else f"op{config.tensor}"
            return (self._seconds(kind, name) * slowdown,)
        if config.tensor > 1:
            raise ConfigError(f"the V100 profile has no pipelines of cut operators: {config}")
        total = self._seconds(kind, f"pp{num_stages}S")
        slowest = self._seconds(kind, f"pp{num_stages}M")
        other = (total - slowest) / (num_stages - 1)
        return (*(other * slowdown,) * (num_stages - 1), slowest * slowdown)

    def changed(self, kind: str, name: str, seconds: float) -> "V100Profile":
        """The profile with one other number."""
        changed = {**self.latencies_s[kind], name: seconds}
        return V100Profile({**self.latencies_s, kind: changed})

    def _seconds(self, kind: str, name: str) -> float:
        try:
            return self.latencies_s[kind][name]
        except KeyError:
            raise ConfigError(f"the V100 profile has no {name} of {kind}") from None


def device_bytes(kind: str, config: ParallelConfig) -> float:
    """Bytes of weights on the fullest device of a group.

    Raises:
        ConfigError: The type of model is not one of AlpaServe's six.
    """
    sizes = UNEVEN_GB.get(config.pipeline, EVEN_GB)
    if kind not in sizes:
        raise ConfigError(f"{kind!r} is none of AlpaServe's models: {', '.join(sizes)}")
    return sizes[kind] * 1e9 / config.num_devices


def load_profile(path: Path) -> V100Profile:
    """Read a JSON object of types of objects of seconds.

    Raises:
        ConfigError: The file isn't that.
    """
    try:
        content: object = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} can't be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must be an object of types of models")
    latencies: dict[str, dict[str, float]] = {}
    for kind, numbers in content.items():
        if not isinstance(numbers, dict) or not all(
            isinstance(seconds, (int, float)) for seconds in numbers.values()
        ):
            raise ConfigError(f"{path}: {kind} must be an object of seconds")
        latencies[str(kind)] = {str(name): float(value) for name, value in numbers.items()}
    return V100Profile(latencies)
