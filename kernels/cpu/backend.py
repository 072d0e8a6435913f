"""The operations on CPU tensors by the C++ extension, in place and in one fixed order for each row.

The checks here are what keeps the extension, which sees only addresses, inside its tensors. They
cost a few microseconds a call together.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.cpu import _kernels
from kernels.cpu.checks import (
    FORMAT_BITS,
    MAX_QUANTIZED_FEATURES,
    check_blocks,
    check_cache,
    check_heads,
    check_like,
    check_matrix,
)
from kernels.cpu.decoder import CpuLayer, batch_address, cache_address
from kernels.layouts import describe
from kernels.ops import (
    DecoderLayer,
    DecoderShape,
    DecoderWeights,
    PackedLinear,
    RaggedBatch,
    ShapeError,
    WeightFormat,
)


class CpuBackend:
    """Backend for float32 and bfloat16 on the host.

    Args:
        num_threads: Threads of a call, the caller's included; small calls use one.
        isa: The build to use, by default the best that the processor runs.

    Raises:
        ValueError: ``isa`` is not one that this processor runs; the message names those.
    """

    def __init__(self, num_threads: int, isa: str | None = None) -> None:
        if num_threads < 1:
            raise ValueError(f"num_threads is {num_threads}; at least 1 is needed")
        self.isa: str = isa or _kernels.supported_isas()[0]
        # The number changes with the order of a packed weight's elements.
        self.packing = f"panels-1-{self.isa}"
        self._kernels = _kernels.Kernels(self.isa, num_threads)

    def packed_shape(
        self,
        out_features: int,
        in_features: int,
        dtype: torch.dtype,
        weight_format: WeightFormat = WeightFormat.DENSE,
    ) -> tuple[int, int]:
        """Whole panels of columns, and of what is multiplied at once along in_features.

        Of integers, a panel in each row.
        """
        if weight_format is not WeightFormat.DENSE:
            return self._quantized_shape(out_features, in_features, weight_format)
        depth = self._kernels.packed_depth(dtype is torch.bfloat16, in_features)
        return self._kernels.packed_rows(out_features), depth

    def pack_linear(
        self,
        weight: Tensor,
        weight_format: WeightFormat = WeightFormat.DENSE,
        out: Tensor | None = None,
    ) -> PackedLinear:
        """Pack into panels of columns; rows and an odd last column are padded with zeros."""
        is_bf16 = check_matrix("weight", weight)
        rows, columns = weight.shape
        shape = self.packed_shape(rows, columns, weight.dtype, weight_format)
        is_dense = weight_format is WeightFormat.DENSE
        dtype = weight.dtype if is_dense else torch.uint8
        if out is None:
            out = torch.empty(shape, dtype=dtype)
        check_like("out", out, shape, dtype)
        source = (weight.data_ptr(), rows, columns, weight.stride(0), out.data_ptr())
        if is_dense:
            self._kernels.pack_linear(is_bf16, *source)
        else:
            self._kernels.pack_quantized(is_bf16, FORMAT_BITS[weight_format], *source)
        return PackedLinear(out, rows, columns, weight.dtype, weight_format)

    def _quantized_shape(
        self, out_features: int, in_features: int, weight_format: WeightFormat
    ) -> tuple[int, int]:
        if in_features > MAX_QUANTIZED_FEATURES:
            raise ShapeError(
                f"a weight is [{out_features}, {in_features}]; quantized ones have at most "
                f"{MAX_QUANTIZED_FEATURES} input features"
            )
        return self._kernels.quantized_shape(FORMAT_BITS[weight_format], out_features, in_features)

    def linear(self, x: Tensor, weight: PackedLinear) -> Tensor:
        """Sums of products in one order for each output element; exact ones of integers."""
        is_bf16 = check_matrix("x", x)
        rows, columns = x.shape
        if columns != weight.in_features or x.dtype is not weight.dtype:
            raise ShapeError(
                f"x is {describe(x)}; the weight takes {weight.dtype}[*, {weight.in_features}]"
            )
        out = torch.empty((rows, weight.out_features), dtype=x.dtype)
        operands = (
            x.data_ptr(),
            rows,
            columns,
            x.stride(0),
            weight.data.data_ptr(),
            weight.out_features,
            out.data_ptr(),
        )
        if weight.format is WeightFormat.DENSE:
            self._kernels.linear(is_bf16, *operands)
        else:
            self._kernels.linear_quantized(is_bf16, FORMAT_BITS[weight.format], *operands)
        return out

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Norm of each row."""
        return self._norm(x, None, weight, eps)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Add to the residual, then norm what was stored there."""
        check_like("residual", residual, x.shape, x.dtype)
        return self._norm(x, residual, weight, eps)

    def _norm(self, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> Tensor:
        is_bf16 = check_matrix("x", x)
        rows, columns = x.shape
        check_like("norm weight", weight, (columns,), x.dtype)
        out = torch.empty((rows, columns), dtype=x.dtype)
        self._kernels.rms_norm(
            is_bf16,
            x.data_ptr(),
            rows,
            columns,
            x.stride(0),
            0 if residual is None else residual.data_ptr(),
            weight.data_ptr(),
            out.data_ptr(),
            eps,
        )
        return out

    def rope(self, query: Tensor, key: Tensor, positions: Tensor, cos_sin: Tensor) -> None:
        """Rotate the pairs (i, i + head_dim / 2)."""
        max_len, head_dim = cos_sin.shape
        check_like("cos_sin", cos_sin, (max_len, head_dim), torch.float32)
        for name, x in (("query", query), ("key", key)):
            is_bf16 = check_heads(name, x)
            rows, heads, size = x.shape
            if size != head_dim or head_dim % 2:
                raise ShapeError(f"{name} is {describe(x)}, cos_sin {describe(cos_sin)}")
            check_like("positions", positions, (rows,), torch.int32)
            self._kernels.rope(
                is_bf16,
                x.data_ptr(),
                rows,
                heads * head_dim,
                x.stride(0),
                head_dim,
                positions.data_ptr(),
                cos_sin.data_ptr(),
                max_len,
            )

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        """``silu(gate) * up`` of each row."""
        is_bf16 = check_matrix("gate_up", gate_up)
        rows, columns = gate_up.shape
        if columns % 2:
            raise ShapeError(f"gate_up is {describe(gate_up)}; its columns must be even")
        out = torch.empty((rows, columns // 2), dtype=gate_up.dtype)
        self._kernels.silu_and_mul(
            is_bf16, gate_up.data_ptr(), rows, columns, gate_up.stride(0), out.data_ptr()
        )
        return out

    def store_kv(
        self, key: Tensor, value: Tensor, kv_cache: Tensor, layer: int, slots: Tensor
    ) -> None:
        """Copy each token's heads to their slots; a slot outside the cache is an IndexError."""
        is_bf16 = check_heads("key", key)
        check_heads("value", value)
        check_cache(kv_cache, layer, key)
        num_tokens, num_kv_heads, _ = key.shape
        check_like("slots", slots, (num_tokens,), torch.int64)
        if value.shape != key.shape or value.dtype is not key.dtype:
            raise ShapeError(f"key is {describe(key)}, value {describe(value)}")
        if num_kv_heads != kv_cache.shape[3]:
            raise ShapeError(f"key is {describe(key)}, kv_cache {describe(kv_cache)}")
        self._kernels.store_kv(
            is_bf16,
            key.data_ptr(),
            key.stride(0),
            value.data_ptr(),
            value.stride(0),
            cache_address(kv_cache),
            layer,
            slots.data_ptr(),
            num_tokens,
        )

    def paged_attention(
        self, query: Tensor, kv_cache: Tensor, layer: int, batch: RaggedBatch, scale: float
    ) -> Tensor:
        """Online softmax over tiles of 32 keys; ids outside the cache are an IndexError."""
        is_bf16 = check_heads("query", query)
        check_cache(kv_cache, layer, query)
        num_tokens, num_heads, _ = query.shape
        out = torch.empty(query.shape, dtype=query.dtype)
        self._kernels.paged_attention(
            is_bf16,
            query.data_ptr(),
            query.stride(0),
            num_heads,
            out.data_ptr(),
            cache_address(kv_cache),
            layer,
            batch_address(batch, num_tokens),
            scale,
        )
        return out

    def copy_blocks(self, source: Tensor, target: Tensor, pairs: Tensor) -> None:
        """Copy blocks' bytes; no block may be a target twice, or a source and a target."""
        check_blocks("source", source)
        check_blocks("target", target)
        if source.shape[1:] != target.shape[1:] or source.dtype is not target.dtype:
            raise ShapeError(f"source is {describe(source)}, target {describe(target)}")
        check_like("pairs", pairs, (pairs.shape[0], 2), torch.int64)
        element = source.element_size()
        self._kernels.copy_blocks(
            source.data_ptr(),
            source.shape[0],
            source.stride(0) * element,
            target.data_ptr(),
            target.shape[0],
            target.stride(0) * element,
            source[0].numel() * element,
            pairs.data_ptr(),
            pairs.shape[0],
        )

    def decoder_layer(
        self, shape: DecoderShape, weights: DecoderWeights, index: int
    ) -> DecoderLayer:
        """A layer whose halves are one call each."""
        return CpuLayer(self._kernels, shape, weights, index)

    def run_layers(
        self,
        layers: Sequence[DecoderLayer],
        hidden: Tensor,
        batch: RaggedBatch,
        kv_cache: Tensor,
    ) -> Tensor:
        """All layers in one call."""
        own = [layer for layer in layers if isinstance(layer, CpuLayer)]
        assert len(own) == len(layers), "layers of another backend"
        if own:
            own[0].check(hidden, kv_cache)
            self._kernels.run_layers(
                [layer.handle for layer in own],
                hidden.data_ptr(),
                batch_address(batch, len(hidden)),
                cache_address(kv_cache),
            )
        return hidden
