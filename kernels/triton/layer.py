"""A decoder layer with fewer launches than its operations one after the other."""

import torch
from torch import Tensor

from kernels.composed import ComposedLayer
from kernels.layouts import describe
from kernels.ops import Backend, DecoderShape, DecoderWeights, RaggedBatch, ShapeError
from kernels.triton.checks import OperandChecks, check_slots
from kernels.triton.rows import rope_and_store


class FusedLayer(ComposedLayer):
    """A composed layer whose bias, rope and storing of keys and values are one launch.

    Its values are bitwise the composed layer's: what that rounds between operations is rounded
    here too.

    Raises:
        ShapeError: The parameters don't fit each other.
    """

    def __init__(
        self,
        backend: Backend,
        shape: DecoderShape,
        weights: DecoderWeights,
        index: int,
        check: OperandChecks,
        *,
        checks_contents: bool,
    ) -> None:
        super().__init__(backend, shape, weights, index)
        _check_fit(shape, weights, check)
        self._ops = backend
        self._heads = shape
        self._parameters = weights
        self._layer = index
        self._check = check
        self._checks_contents = checks_contents

    def attention(
        self, x: Tensor | None, residual: Tensor, batch: RaggedBatch, kv_cache: Tensor
    ) -> Tensor:
        """See DecoderLayer."""
        shape, weights = self._heads, self._parameters
        qkv = self._ops.linear(self._norm(x, residual, weights.input_norm), weights.qkv)
        heads = qkv.view(len(qkv), -1, shape.head_dim)
        query = heads[:, : shape.num_heads]
        self._check.cache_for(kv_cache, self._layer, query)
        if kv_cache.shape[3] != shape.num_kv_heads:
            raise ShapeError(f"{shape.num_kv_heads} KV heads; kv_cache is {describe(kv_cache)}")
        self._check.batch(batch, len(qkv))
        self._check.like("slots", batch.slots, (len(qkv),), torch.int64)
        if self._checks_contents:
            check_slots(batch.slots, kv_cache.shape[0] * kv_cache.shape[4])
        rope_and_store(
            qkv,
            weights.qkv_bias,
            kv_cache,
            self._layer,
            (batch.positions, batch.slots),
            shape.cos_sin,
        )
        scale = shape.head_dim**-0.5
        attended = self._ops.paged_attention(query, kv_cache, self._layer, batch, scale)
        return self._ops.linear(attended.flatten(1), weights.output)


def _check_fit(shape: DecoderShape, weights: DecoderWeights, check: OperandChecks) -> None:
    hidden_size = weights.qkv.in_features
    width = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim
    intermediate_size = weights.down.in_features
    wanted = {
        "qkv": (weights.qkv, width, hidden_size),
        "output": (weights.output, hidden_size, shape.num_heads * shape.head_dim),
        "gate_up": (weights.gate_up, 2 * intermediate_size, hidden_size),
        "down": (weights.down, hidden_size, intermediate_size),
    }
    for name, (weight, rows, columns) in wanted.items():
        if (weight.out_features, weight.in_features) != (rows, columns):
            raise ShapeError(
                f"{name} is [{weight.out_features}, {weight.in_features}]; [{rows}, {columns}] is "
                "needed"
            )
    max_len = shape.cos_sin.shape[0]
    check.like("cos_sin", shape.cos_sin, (max_len, shape.head_dim), torch.float32)
    dtype = weights.qkv.dtype
    check.like("input_norm", weights.input_norm, (hidden_size,), dtype)
    check.like("mlp_norm", weights.mlp_norm, (hidden_size,), dtype)
    if weights.qkv_bias is not None:
        check.like("qkv_bias", weights.qkv_bias, (width,), dtype)
