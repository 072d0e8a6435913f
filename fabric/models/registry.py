"""The model families that can be served, by the architecture that their configuration names."""

import torch

from fabric.core.errors import CheckpointError
from fabric.models.checkpoint import Checkpoint
from fabric.models.config import ModelConfig
from fabric.models.llama import LlamaForCausalLM
from fabric.models.model import CausalModel, RankPart
from fabric.models.parameters import ParameterGroup
from fabric.models.shard import Shard
from kernels.ops import Backend

# What tells them apart is in their configuration and their weights.
ARCHITECTURES = {"LlamaForCausalLM": LlamaForCausalLM, "Qwen2ForCausalLM": LlamaForCausalLM}


def check_architecture(architecture: str) -> None:
    """Refuse an architecture that isn't here.

    Raises:
        CheckpointError: It isn't supported; names those that are.
    """
    if architecture not in ARCHITECTURES:
        raise CheckpointError(
            f"architecture {architecture!r} is not supported; "
            f"supported: {', '.join(sorted(ARCHITECTURES))}"
        )


def build_model(
    config: ModelConfig,
    backend: Backend,
    dtype: torch.dtype,
    max_model_len: int,
    part: RankPart,
) -> CausalModel:
    """Build one rank's empty part of the model, whose architecture has been checked."""
    return ARCHITECTURES[config.architecture](config, backend, dtype, max_model_len, part)


def parameter_groups(config: ModelConfig, shard: Shard) -> tuple[ParameterGroup, ...]:
    """What a rank needs: parameters outside of layers, then each of its layers'."""
    return ARCHITECTURES[config.architecture].parameter_groups(config, shard)


def check_checkpoint(config: ModelConfig, checkpoint: Checkpoint) -> int:
    """Check that a checkpoint has the whole model's tensors; return how many elements.

    Raises:
        CheckpointError: Tensors are missing, unused or mis-shaped.
    """
    return ARCHITECTURES[config.architecture].check(config, checkpoint)
