"""The table of cosines and sines that rotary position embedding reads."""

import math

import torch
from torch import Tensor

from fabric.core.errors import CheckpointError
from fabric.models.rope_config import RopeConfig, RopeScaling


def cos_sin_table(rope: RopeConfig, head_dim: int, max_model_len: int) -> Tensor:
    """Cosines, then sines, of each position's angles.

    The arithmetic is float32 throughout, in the order that transformers does it, because the
    angles of late positions differ visibly when it is done more precisely.

    Returns:
        ``[max_model_len, head_dim]`` float32.

    Source: RoFormer (Su et al., 2021).
    """
    positions = torch.arange(max_model_len, dtype=torch.float32)
    angles = positions[:, None] * _inverse_frequencies(rope, head_dim)[None, :]
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def _inverse_frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    plain = 1.0 / (rope.theta**exponents)
    match rope.scaling:
        case RopeScaling.LINEAR:
            return plain / rope.factor
        case RopeScaling.LLAMA3:
            return _llama3(plain, rope)
        case RopeScaling.FACTORS:
            if len(rope.frequency_factors) != head_dim // 2:
                raise CheckpointError(
                    f"{len(rope.frequency_factors)} rope factors for a head_dim of {head_dim}"
                )
            return plain / torch.tensor(rope.frequency_factors)
        case _:
            return plain


def _llama3(plain: Tensor, rope: RopeConfig) -> Tensor:
    """Keep high frequencies, divide low ones by the factor, and blend in between.

    Source: The Llama 3 Herd of Models (2024), section 3.4.2, as released with Llama 3.1.
    """
    turns = rope.original_max_position_embeddings * plain / (2 * math.pi)
    blend = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blend = blend.clamp(0.0, 1.0)
    return (1 - blend) * plain / rope.factor + blend * plain
