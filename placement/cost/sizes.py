"""Bytes of a model on each device of a group: weights, KV, and the context that fits.

Everything is cut as the fabric cuts it (:mod:`fabric.models.shard`).
Source: Megatron-LM (Shoeybi et al., 2019) for the shares of a stage's ranks.
"""

from dataclasses import dataclass

from fabric.core.plan import ParallelConfig
from fabric.models.shard import even_layer_split
from placement.shape import ModelShape


@dataclass(frozen=True, slots=True)
class StagePart:
    """A pipeline stage: its layers, and whether the embedding or the head is on it."""

    num_layers: int
    is_first: bool
    is_last: bool


def is_divisible(shape: ModelShape, parallel: ParallelConfig) -> bool:
    """Whether the fabric can cut the model so: layers over stages, heads over ranks."""
    size, num_kv_heads = parallel.tensor, shape.num_kv_heads
    shares_kv_heads = num_kv_heads % size == 0 or size % num_kv_heads == 0
    fits_heads = shape.num_heads % size == 0 and shares_kv_heads
    return fits_heads and parallel.pipeline <= shape.num_layers


def stages_of(
    shape: ModelShape, num_stages: int, layer_split: tuple[int, ...] | None = None
) -> tuple[StagePart, ...]:
    """The stages that the fabric makes of a model, or those of a given split.

    Raises:
        ConfigError: There are more stages than layers.
    """
    split = layer_split or even_layer_split(shape.num_layers, num_stages)
    last = len(split) - 1
    return tuple(StagePart(layers, i == 0, i == last) for i, layers in enumerate(split))


def weight_bytes(
    shape: ModelShape, parallel: ParallelConfig, layer_split: tuple[int, ...] | None = None
) -> tuple[int, ...]:
    """Bytes of weights on the fullest device of each stage.

    A tied head is on the last stage too, if that isn't the first. Norms are on every rank.
    """
    stages = stages_of(shape, parallel.pipeline, layer_split)
    return tuple(_stage_bytes(shape, stage, parallel.tensor) for stage in stages)


def kv_heads_per_device(shape: ModelShape, tensor: int) -> int:
    """KV heads that a device keeps: its share, or one that other devices keep too."""
    return max(1, shape.num_kv_heads // tensor)


def kv_token_bytes(
    shape: ModelShape, parallel: ParallelConfig, layer_split: tuple[int, ...] | None = None
) -> tuple[int, ...]:
    """KV bytes of one token on a device of each stage, repeated heads included."""
    numbers = 2 * kv_heads_per_device(shape, parallel.tensor) * shape.head_dim
    stages = stages_of(shape, parallel.pipeline, layer_split)
    return tuple(stage.num_layers * numbers * shape.kv_bits // 8 for stage in stages)


def max_tokens(
    shape: ModelShape, parallel: ParallelConfig, memory_bytes: int, block_size: int = 1
) -> int:
    """Tokens whose KV fits beside the weights, in whole blocks, on the tightest stage; 0: none.

    Args:
        shape: The model.
        parallel: How it is cut.
        memory_bytes: Of one device, for weights and KV.
        block_size: Tokens of a block.
    """
    weights = weight_bytes(shape, parallel)
    tokens = kv_token_bytes(shape, parallel)
    rooms = [
        max(0, memory_bytes - weight) // (token * block_size)
        for weight, token in zip(weights, tokens, strict=True)
    ]
    return min(rooms) * block_size


def max_context(shape: ModelShape, parallel: ParallelConfig, memory_bytes: int) -> int:
    """The longest request that a group can hold by itself, prompt and output together."""
    return min(shape.max_model_len, max_tokens(shape, parallel, memory_bytes))


def layer_bytes(shape: ModelShape, tensor: int) -> int:
    """Bytes of a layer's weights on its fullest device: a share of matrices, norms whole."""
    heads = 2 * shape.num_heads // tensor + 2 * kv_heads_per_device(shape, tensor)
    features = -(-shape.intermediate_size // tensor)
    feed_forward = shape.num_experts * (3 if shape.is_gated else 2) * features
    matrices = shape.hidden_size * (heads * shape.head_dim + feed_forward)
    outer = (shape.router + _layer_vectors(shape, tensor)) * shape.outer_bits
    return (matrices * shape.weight_bits + outer) // 8


def vocabulary_bytes(shape: ModelShape, tensor: int) -> int:
    """Bytes of the largest rank's share of the embedding or the head."""
    rows = -(-shape.vocab_size // tensor)
    return rows * shape.hidden_size * shape.outer_bits // 8


def _stage_bytes(shape: ModelShape, stage: StagePart, tensor: int) -> int:
    total = stage.num_layers * layer_bytes(shape, tensor)
    item_bytes = shape.outer_bits // 8
    norm_bytes = shape.hidden_size * (2 if shape.bias == "all" else 1) * item_bytes
    if stage.is_first:
        total += vocabulary_bytes(shape, tensor)
        total += shape.num_positions * shape.hidden_size * item_bytes
        total += norm_bytes if shape.has_embedding_norm else 0
    if stage.is_last:
        total += norm_bytes
        total += 0 if shape.is_tied and stage.is_first else vocabulary_bytes(shape, tensor)
    return total


def _layer_vectors(shape: ModelShape, tensor: int) -> int:
    """Norms are whole on each rank, and so are biases of what ranks sum up; others are cut."""
    cut = 0
    if shape.bias != "none":
        own = shape.num_heads // tensor + 2 * kv_heads_per_device(shape, tensor)
        cut = (shape.num_heads + 2 * shape.num_kv_heads - own) * shape.head_dim
    if shape.bias == "all":
        features = shape.intermediate_size - -(-shape.intermediate_size // tensor)
        cut += (2 if shape.is_gated else 1) * shape.num_experts * features
    return shape.layer_vectors - cut
