"""Decoder layers of the C++ extension: checked once when they are made, then one call a half."""

import torch
from torch import Tensor

from kernels.cpu import _kernels
from kernels.cpu.checks import FORMAT_BITS, check_batch, check_blocks, check_like
from kernels.layouts import describe
from kernels.ops import DecoderShape, DecoderWeights, PackedLinear, RaggedBatch, ShapeError


class CpuLayer:
    """A decoder layer; ``handle`` is the extension's, which has the addresses of its weights."""

    def __init__(
        self,
        kernels: _kernels.Kernels,
        shape: DecoderShape,
        weights: DecoderWeights,
        index: int,
    ) -> None:
        self._kernels = kernels
        # They own the memory that the handle points at.
        self._operands = shape, weights
        self._dtype = weights.input_norm.dtype
        self._hidden_size = weights.qkv.in_features
        _check_weights(shape, weights)
        intermediate_size = weights.down.in_features
        self.handle = _kernels.DecoderLayer(
            self._dtype is torch.bfloat16,
            (
                self._hidden_size,
                intermediate_size,
                shape.num_heads,
                shape.num_kv_heads,
                shape.head_dim,
                shape.norm_eps,
                shape.head_dim**-0.5,
                shape.cos_sin.data_ptr(),
                len(shape.cos_sin),
            ),
            (
                weights.input_norm.data_ptr(),
                _linear_address(weights.qkv),
                0 if weights.qkv_bias is None else weights.qkv_bias.data_ptr(),
                _linear_address(weights.output),
                weights.mlp_norm.data_ptr(),
                _linear_address(weights.gate_up),
                _linear_address(weights.down),
            ),
            index,
        )

    def attention(
        self, x: Tensor | None, residual: Tensor, batch: RaggedBatch, kv_cache: Tensor
    ) -> Tensor:
        """See DecoderLayer."""
        self.check(residual, kv_cache)
        if x is not None:
            check_like("x", x, residual.shape, self._dtype)
        out = torch.empty_like(residual)
        self._kernels.attention_half(
            self.handle,
            0 if x is None else x.data_ptr(),
            residual.data_ptr(),
            out.data_ptr(),
            batch_address(batch, len(residual)),
            cache_address(kv_cache),
        )
        return out

    def mlp(self, x: Tensor, residual: Tensor) -> Tensor:
        """See DecoderLayer."""
        shape = (len(residual), self._hidden_size)
        check_like("residual", residual, shape, self._dtype)
        check_like("x", x, shape, self._dtype)
        out = torch.empty_like(residual)
        self._kernels.mlp_half(
            self.handle, x.data_ptr(), residual.data_ptr(), out.data_ptr(), len(residual)
        )
        return out

    def check(self, hidden: Tensor, kv_cache: Tensor) -> None:
        """Check that activations and a cache fit the layer.

        Raises:
            ShapeError: They don't.
        """
        check_like("hidden", hidden, (len(hidden), self._hidden_size), self._dtype)
        check_blocks("kv_cache", kv_cache)
        if kv_cache.dtype is not self._dtype:
            raise ShapeError(f"kv_cache is {describe(kv_cache)}; the layer is in {self._dtype}")


def cache_address(kv_cache: Tensor) -> tuple[int, ...]:
    """A checked cache, as the extension takes it."""
    num_blocks, num_layers, _, num_kv_heads, block_size, head_dim = kv_cache.shape
    return (
        kv_cache.data_ptr(),
        num_blocks,
        num_layers,
        num_kv_heads,
        block_size,
        head_dim,
        kv_cache.stride(0),
    )


def batch_address(batch: RaggedBatch, num_tokens: int) -> tuple[int, ...]:
    """A batch, as the extension takes it, which checks what its tensors say.

    Raises:
        ShapeError: The tensors don't fit each other.
    """
    num_seqs, max_blocks = check_batch(batch, num_tokens)
    return (
        batch.positions.data_ptr(),
        batch.slots.data_ptr(),
        batch.query_start.data_ptr(),
        batch.context_lens.data_ptr(),
        batch.block_tables.data_ptr(),
        num_tokens,
        num_seqs,
        max_blocks,
    )


def _linear_address(weight: PackedLinear) -> tuple[int, int, int, int]:
    return (
        weight.data.data_ptr(),
        weight.out_features,
        weight.in_features,
        FORMAT_BITS[weight.format],
    )


def _check_weights(shape: DecoderShape, weights: DecoderWeights) -> None:
    hidden_size, intermediate_size = weights.qkv.in_features, weights.down.in_features
    attended = shape.num_heads * shape.head_dim
    qkv_width = attended + 2 * shape.num_kv_heads * shape.head_dim
    expected = {
        "qkv": (weights.qkv, qkv_width, hidden_size),
        "output": (weights.output, hidden_size, attended),
        "gate_up": (weights.gate_up, 2 * intermediate_size, hidden_size),
        "down": (weights.down, hidden_size, intermediate_size),
    }
    dtype = weights.input_norm.dtype
    for name, (weight, out_features, in_features) in expected.items():
        if (weight.out_features, weight.in_features, weight.dtype) != (
            out_features,
            in_features,
            dtype,
        ):
            raise ShapeError(
                f"{name} is {weight.dtype}[{weight.out_features}, {weight.in_features}]; "
                f"{dtype}[{out_features}, {in_features}] is needed"
            )
    check_like("input_norm", weights.input_norm, (hidden_size,), dtype)
    check_like("mlp_norm", weights.mlp_norm, (hidden_size,), dtype)
    check_like("cos_sin", shape.cos_sin, (len(shape.cos_sin), shape.head_dim), torch.float32)
    if weights.qkv_bias is not None:
        check_like("qkv_bias", weights.qkv_bias, (qkv_width,), dtype)
    if shape.num_heads % shape.num_kv_heads or shape.head_dim % 2:
        raise ShapeError(
            f"{shape.num_heads} heads of {shape.head_dim} over {shape.num_kv_heads} KV heads"
        )
