"""A decoder layer made of a backend's single operations: the meaning of those that are fused."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.ops import Backend, DecoderLayer, DecoderShape, DecoderWeights, RaggedBatch


class ComposedLayer:
    """A decoder layer that calls operations one after the other."""

    def __init__(
        self, backend: Backend, shape: DecoderShape, weights: DecoderWeights, index: int
    ) -> None:
        self._backend = backend
        self._shape = shape
        self._weights = weights
        self._index = index

    def attention(
        self, x: Tensor | None, residual: Tensor, batch: RaggedBatch, kv_cache: Tensor
    ) -> Tensor:
        """See DecoderLayer."""
        ops, shape, weights = self._backend, self._shape, self._weights
        x = self._norm(x, residual, weights.input_norm)
        qkv = ops.linear(x, weights.qkv)
        if weights.qkv_bias is not None:
            qkv.add_(weights.qkv_bias)
        sizes = [shape.num_heads, shape.num_kv_heads, shape.num_kv_heads]
        heads = qkv.view(len(qkv), sum(sizes), shape.head_dim)
        query, key, value = torch.split(heads, sizes, dim=1)
        ops.rope(query, key, batch.positions, shape.cos_sin)
        ops.store_kv(key, value, kv_cache, self._index, batch.slots)
        scale = shape.head_dim**-0.5
        attended = ops.paged_attention(query, kv_cache, self._index, batch, scale)
        return ops.linear(attended.flatten(1), weights.output)

    def mlp(self, x: Tensor, residual: Tensor) -> Tensor:
        """See DecoderLayer."""
        ops, weights = self._backend, self._weights
        x = self._norm(x, residual, weights.mlp_norm)
        return ops.linear(ops.silu_and_mul(ops.linear(x, weights.gate_up)), weights.down)

    def _norm(self, x: Tensor | None, residual: Tensor, weight: Tensor) -> Tensor:
        if x is None:
            return self._backend.rms_norm(residual, weight, self._shape.norm_eps)
        return self._backend.add_rms_norm(x, residual, weight, self._shape.norm_eps)


def run_layers(
    layers: Sequence[DecoderLayer], hidden: Tensor, batch: RaggedBatch, kv_cache: Tensor
) -> Tensor:
    """See Backend.run_layers."""
    x: Tensor | None = None
    for layer in layers:
        x = layer.attention(x, hidden, batch, kv_cache)
        x = layer.mlp(x, hidden)
    return hidden if x is None else hidden.add_(x)
