"""Rotary position embedding parameters, from config.json or GGUF metadata."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from fabric.core.errors import CheckpointError


class RopeScaling(StrEnum):
    """How frequencies are changed to reach beyond the context of pre-training."""

    DEFAULT = "default"
    LINEAR = "linear"
    LLAMA3 = "llama3"
    FACTORS = "factors"


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary position embedding (Su et al., 2021) and its scaling.

    ``factor`` is for LINEAR and LLAMA3; the two frequency factors and the original context
    are for LLAMA3 alone. ``frequency_factors`` (head_dim / 2 divisors) is how GGUF files spell
    LLAMA3 out, and goes with FACTORS.
    """

    theta: float = 10000.0
    scaling: RopeScaling = RopeScaling.DEFAULT
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192
    frequency_factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if min(self.theta, self.factor, self.low_freq_factor) <= 0:
            raise CheckpointError(f"rope parameters must be positive: {self}")
        if self.scaling is RopeScaling.LLAMA3 and self.high_freq_factor <= self.low_freq_factor:
            raise CheckpointError("rope: high_freq_factor must be greater than low_freq_factor")

    @classmethod
    def from_hf(cls, raw: Mapping[str, object]) -> "RopeConfig":
        """Read either spelling: ``rope_parameters``, or ``rope_theta`` and ``rope_scaling``.

        Raises:
            CheckpointError: The kind of scaling isn't supported, or a number is wrong.
        """
        values: dict[str, object] = {"rope_theta": raw.get("rope_theta")}
        for key in ("rope_scaling", "rope_parameters"):
            part = raw.get(key) or {}
            if not isinstance(part, Mapping):
                raise CheckpointError(f"config.json: {key} is {part!r}; an object is needed")
            values.update(part)
        kind = values.get("rope_type") or values.get("type") or RopeScaling.DEFAULT
        return cls._of(str(kind), values, raw.get("max_position_embeddings"))

    @classmethod
    def from_gguf(
        cls, metadata: Mapping[str, object], arch: str, frequency_factors: tuple[float, ...]
    ) -> "RopeConfig":
        """Read the ``ARCH.rope.*`` keys; ``frequency_factors`` is the rope_freqs tensor or ().

        Raises:
            CheckpointError: The kind of scaling isn't supported, or a number is wrong.
        """
        prefix = f"{arch}.rope."
        theta = _number(metadata.get(f"{prefix}freq_base"), 10000.0)
        if frequency_factors:
            return cls(theta, RopeScaling.FACTORS, frequency_factors=frequency_factors)
        kind = str(metadata.get(f"{prefix}scaling.type", "none"))
        values = {"rope_theta": theta, "factor": metadata.get(f"{prefix}scaling.factor")}
        return cls._of("default" if kind == "none" else kind, values, None)

    @classmethod
    def _of(cls, kind: str, values: Mapping[str, object], max_positions: object) -> "RopeConfig":
        supported = (RopeScaling.DEFAULT, RopeScaling.LINEAR, RopeScaling.LLAMA3)
        if kind not in supported:
            raise CheckpointError(
                f"rope scaling {kind!r} is not supported; supported: {', '.join(supported)}"
            )
        original = values.get("original_max_position_embeddings") or max_positions
        return cls(
            theta=_number(values.get("rope_theta"), 10000.0),
            scaling=RopeScaling(kind),
            factor=_number(values.get("factor"), 1.0),
            low_freq_factor=_number(values.get("low_freq_factor"), 1.0),
            high_freq_factor=_number(values.get("high_freq_factor"), 4.0),
            original_max_position_embeddings=int(_number(original, 8192)),
        )


def _number(value: object, default: float) -> float:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CheckpointError(f"rope: {value!r} is not a number")
    return float(value)
