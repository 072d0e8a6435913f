"""Fused decoder layers compute what single operations do, to the last bit."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kernels.composed import ComposedLayer, run_layers
from kernels.ops import (
    Backend,
    DecoderShape,
    DecoderWeights,
    PackedLinear,
    RaggedBatch,
    ShapeError,
    WeightFormat,
)
from tests.kernels.cases import NAN, random_tensor

HIDDEN, BLOCK_SIZE, NUM_LAYERS = 96, 8, 2
CONTEXTS = (21, 1, 300)
NEW = (21, 1, 3)


def decoder_shape(num_heads: int, num_kv_heads: int, head_dim: int) -> DecoderShape:
    return DecoderShape(num_heads, num_kv_heads, head_dim, 1e-5, random_tensor(7, 400, head_dim))


def decoder_weights(
    backend: Backend,
    shape: DecoderShape,
    intermediate: int,
    dtype: torch.dtype,
    has_bias: bool,
    weight_format: WeightFormat = WeightFormat.DENSE,
) -> DecoderWeights:
    attended = shape.num_heads * shape.head_dim
    width = attended + 2 * shape.num_kv_heads * shape.head_dim

    def linear(seed: int, rows: int, columns: int) -> PackedLinear:
        weight = random_tensor(seed, rows, columns, dtype=dtype) * columns**-0.5
        return backend.pack_linear(weight, weight_format)

    return DecoderWeights(
        input_norm=random_tensor(1, HIDDEN, dtype=dtype),
        qkv=linear(2, width, HIDDEN),
        qkv_bias=random_tensor(3, width, dtype=dtype) if has_bias else None,
        output=linear(4, HIDDEN, attended),
        mlp_norm=random_tensor(5, HIDDEN, dtype=dtype),
        gate_up=linear(6, 2 * intermediate, HIDDEN),
        down=linear(8, HIDDEN, intermediate),
    )


def ragged_batch() -> tuple[RaggedBatch, int]:
    """Sequences of CONTEXTS with NEW tokens each in scattered blocks; how many blocks there are."""
    counts = [-(-length // BLOCK_SIZE) for length in CONTEXTS]
    order = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(3)).int()
    tables = torch.zeros((len(CONTEXTS), max(counts)), dtype=torch.int32)
    positions, slots = [], []
    for row, (length, new) in enumerate(zip(CONTEXTS, NEW, strict=True)):
        first = sum(counts[:row])
        tables[row, : counts[row]] = order[first : first + counts[row]]
        own = torch.arange(length - new, length)
        positions.append(own)
        slots.append(tables[row, own // BLOCK_SIZE].long() * BLOCK_SIZE + own % BLOCK_SIZE)
    starts = torch.tensor([0, *torch.tensor(NEW).cumsum(0).tolist()], dtype=torch.int32)
    contexts = torch.tensor(CONTEXTS, dtype=torch.int32)
    batch = RaggedBatch(
        torch.cat(positions).int(), torch.cat(slots), starts, contexts, tables.contiguous()
    )
    return batch, sum(counts)


def random_cache(num_blocks: int, shape: DecoderShape, dtype: torch.dtype) -> Tensor:
    sizes = (num_blocks, NUM_LAYERS, 2, shape.num_kv_heads, BLOCK_SIZE, shape.head_dim)
    return random_tensor(9, *sizes, dtype=dtype)


@pytest.mark.parametrize("intermediate", [64, 83])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("heads", [(4, 4, 24), (6, 2, 64), (8, 1, 80)])
def test_fused_layers_equal_single_operations(
    backend: Backend,
    dtype: torch.dtype,
    heads: tuple[int, int, int],
    has_bias: bool,
    intermediate: int,
) -> None:
    shape = decoder_shape(*heads)
    check_fused(backend, shape, decoder_weights(backend, shape, intermediate, dtype, has_bias))


@pytest.mark.parametrize("intermediate", [64, 83])
@pytest.mark.parametrize("weight_format", [WeightFormat.INT8, WeightFormat.INT4])
def test_fused_layers_with_integer_weights_equal_single_operations(
    backend: Backend, dtype: torch.dtype, weight_format: WeightFormat, intermediate: int
) -> None:
    shape = decoder_shape(6, 2, 64)
    weights = decoder_weights(backend, shape, intermediate, dtype, True, weight_format)
    check_fused(backend, shape, weights)


def check_fused(backend: Backend, shape: DecoderShape, weights: DecoderWeights) -> None:
    dtype = weights.input_norm.dtype
    batch, num_blocks = ragged_batch()
    caches = [random_cache(num_blocks, shape, dtype) for _ in range(3)]
    hidden = random_tensor(11, sum(NEW), HIDDEN, dtype=dtype)
    composed = [ComposedLayer(backend, shape, weights, i) for i in range(NUM_LAYERS)]
    fused = [backend.decoder_layer(shape, weights, i) for i in range(NUM_LAYERS)]
    expected = run_layers(composed, hidden.clone(), batch, caches[0])
    assert torch.equal(backend.run_layers(fused, hidden.clone(), batch, caches[1]), expected)
    # Half by half, as where ranks sum in between.
    assert torch.equal(run_layers(fused, hidden.clone(), batch, caches[2]), expected)
    assert torch.equal(caches[1], caches[0])
    assert torch.equal(caches[2], caches[0])


def test_batch_outside_the_cache_is_refused(backend: Backend, dtype: torch.dtype) -> None:
    shape = decoder_shape(4, 2, 16)
    layer = backend.decoder_layer(shape, decoder_weights(backend, shape, 64, dtype, False), 1)
    batch, num_blocks = ragged_batch()
    cache = random_cache(num_blocks, shape, dtype)
    hidden = torch.full((sum(NEW), HIDDEN), NAN, dtype=dtype)
    outside = replace(batch, slots=batch.slots + num_blocks * BLOCK_SIZE)
    with pytest.raises(IndexError, match="slot"):
        backend.run_layers([layer], hidden, outside, cache)
    with pytest.raises(ValueError, match="cache of 1 layers"):
        backend.run_layers([layer], hidden, batch, cache[:, :1].clone())


def test_weights_that_do_not_fit_are_refused(backend: Backend, dtype: torch.dtype) -> None:
    shape = decoder_shape(4, 2, 16)
    weights = decoder_weights(backend, shape, 64, dtype, False)
    with pytest.raises(ShapeError, match="output is"):
        backend.decoder_layer(shape, replace(weights, output=weights.qkv), 0)
