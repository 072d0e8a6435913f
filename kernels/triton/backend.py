"""The operations on a GPU by Triton kernels, or on the host under Triton's interpreter.

Nothing here waits for the device, and grids follow shapes alone, so that a step can be captured in
a CUDA graph: sequences with a context of 0 give zeros, tokens whose slot is outside the cache, such
as -1, store nothing. The longest context is taken to be what block tables have room for.
"""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from kernels.composed import run_layers
from kernels.layouts import describe
from kernels.ops import (
    PLAIN,
    DecoderLayer,
    DecoderShape,
    DecoderWeights,
    PackedLinear,
    RaggedBatch,
    ShapeError,
    WeightFormat,
)
from kernels.triton import attention, blocks, linear, quantized, rows
from kernels.triton.checks import (
    DTYPES,
    OperandChecks,
    check_contents,
    check_slots,
)
from kernels.triton.configs import ArchConfig, device_config
from kernels.triton.layer import FusedLayer


class TritonBackend:
    """Backend for float32 and bfloat16 on one device.

    Args:
        device: A CUDA device, without an index the current one, or the host where
            TRITON_INTERPRET=1. It is not touched before the first operation.
        config: How kernels are cut; by default the table's for the device.
        is_exact: Whether linear layers keep one order of sums for any number of tokens. If not,
            cuBLAS multiplies, which chooses an order by shape.
        checks_contents: Whether slots, block tables and lengths are looked at, which waits for the
            device; by default on the host only.
    """

    packing = PLAIN

    def __init__(
        self,
        device: torch.device | str,
        config: ArchConfig | None = None,
        *,
        is_exact: bool = True,
        checks_contents: bool | None = None,
    ) -> None:
        self.device = torch.device(device)
        self._given_config = config
        self._check = OperandChecks(self.device)
        self._is_exact = is_exact
        is_host = self.device.type == "cpu"
        self._checks_contents = is_host if checks_contents is None else checks_contents

    @cached_property
    def config(self) -> ArchConfig:
        """How kernels are cut."""
        return self._given_config or device_config(self.device)

    def packed_shape(
        self,
        out_features: int,
        in_features: int,
        dtype: torch.dtype,
        weight_format: WeightFormat = WeightFormat.DENSE,
    ) -> tuple[int, int]:
        """The weight's own; of integers, the bytes that kernels.triton.quantized lays out."""
        if weight_format is WeightFormat.DENSE:
            return out_features, in_features
        return quantized.packed_shape(out_features, in_features, weight_format)

    def pack_linear(
        self,
        weight: Tensor,
        weight_format: WeightFormat = WeightFormat.DENSE,
        out: Tensor | None = None,
    ) -> PackedLinear:
        """Keep the weight as it is, or quantize it, on whatever device it is."""
        if weight.dim() != 2 or weight.stride(1) != 1 or weight.dtype not in DTYPES:
            raise ShapeError(
                f"weight is {describe(weight)}; a float32 or bfloat16 matrix with contiguous rows "
                "is needed"
            )
        out_features, in_features = weight.shape
        if weight_format is WeightFormat.DENSE:
            return PackedLinear(weight, out_features, in_features, weight.dtype)
        return quantized.pack(weight, weight_format, out)

    def linear(self, x: Tensor, weight: PackedLinear) -> Tensor:
        """Chains of multiply-adds over chunks of ``in_features``, added in order."""
        self._check.matrix("x", x)
        if x.shape[1] != weight.in_features or x.dtype is not weight.dtype:
            raise ShapeError(
                f"x is {describe(x)}; the weight takes {weight.dtype}[*, {weight.in_features}]"
            )
        if not self._check.is_here(weight.data):
            raise ShapeError(f"weight is {describe(weight.data)}; x is {describe(x)}")
        if weight.format is WeightFormat.INT8:
            return quantized.linear_int8(self.config, x, weight)
        if weight.format is WeightFormat.INT4:
            return quantized.linear_int4(self.config, x, weight)
        if not self._is_exact:
            return torch.nn.functional.linear(x, weight.data)
        return linear.linear(self.config, x, weight.data)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Norm of each row."""
        return self._norm(x, None, weight, eps)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Add to the residual, then norm what was stored there."""
        self._check.like("residual", residual, x.shape, x.dtype)
        return self._norm(x, residual, weight, eps)

    def _norm(self, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> Tensor:
        self._check.matrix("x", x)
        self._check.like("norm weight", weight, (x.shape[1],), x.dtype)
        return rows.rms_norm(x, residual, weight, eps)

    def rope(self, query: Tensor, key: Tensor, positions: Tensor, cos_sin: Tensor) -> None:
        """Rotate the pairs (i, i + head_dim / 2); positions outside ``cos_sin`` are left alone."""
        max_len, head_dim = cos_sin.shape
        self._check.like("cos_sin", cos_sin, (max_len, head_dim), torch.float32)
        for name, x in (("query", query), ("key", key)):
            self._check.heads(name, x)
            if x.shape[2] != head_dim or head_dim % 2 or len(x) != len(query):
                raise ShapeError(f"{name} is {describe(x)}, cos_sin {describe(cos_sin)}")
        self._check.like("positions", positions, (len(query),), torch.int32)
        rows.rope(query, key, positions, cos_sin)

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        """``silu(gate) * up`` of each row."""
        self._check.matrix("gate_up", gate_up)
        if gate_up.shape[1] % 2:
            raise ShapeError(f"gate_up is {describe(gate_up)}; its columns must be even")
        return rows.silu_and_mul(gate_up)

    def store_kv(
        self, key: Tensor, value: Tensor, kv_cache: Tensor, layer: int, slots: Tensor
    ) -> None:
        """Copy each token's heads to their slots; a slot outside the cache is skipped."""
        self._check.heads("key", key)
        self._check.heads("value", value)
        self._check.cache_for(kv_cache, layer, key)
        self._check.like("slots", slots, (len(key),), torch.int64)
        if value.shape != key.shape or value.dtype is not key.dtype:
            raise ShapeError(f"key is {describe(key)}, value {describe(value)}")
        if key.shape[1] != kv_cache.shape[3]:
            raise ShapeError(f"key is {describe(key)}, kv_cache {describe(kv_cache)}")
        if self._checks_contents:
            check_slots(slots, kv_cache.shape[0] * kv_cache.shape[4])
        rows.store_kv(key, value, kv_cache, layer, slots)

    def paged_attention(
        self, query: Tensor, kv_cache: Tensor, layer: int, batch: RaggedBatch, scale: float
    ) -> Tensor:
        """Online softmax over tiles and splits at fixed positions, see kernels.triton.jit."""
        self._check.heads("query", query)
        self._check.cache_for(kv_cache, layer, query)
        self._check.batch(batch, len(query))
        if self._checks_contents:
            check_contents(batch, kv_cache.shape[0], kv_cache.shape[4])
        return attention.paged_attention(self.config, query, kv_cache, layer, batch, scale)

    def copy_blocks(self, source: Tensor, target: Tensor, pairs: Tensor) -> None:
        """One launch within a device; between devices, gather, one copy, scatter."""
        blocks.check_same_blocks(source, target)
        if pairs.shape[1:] != (2,) or pairs.dtype is not torch.int64:
            raise ShapeError(f"pairs is {describe(pairs)}; [num_pairs, 2] int64 is needed")
        if self._checks_contents:
            for source_id, target_id in pairs.tolist():
                if not (0 <= source_id < len(source) and 0 <= target_id < len(target)):
                    raise IndexError(
                        f"pair ({source_id}, {target_id}) is outside caches of {len(source)} and "
                        f"{len(target)} blocks"
                    )
        blocks.copy_pairs(source, target, pairs, self.device.type)

    def decoder_layer(
        self, shape: DecoderShape, weights: DecoderWeights, index: int
    ) -> DecoderLayer:
        """One kernel rotates queries and keys and stores keys and values."""
        return FusedLayer(
            self, shape, weights, index, self._check, checks_contents=self._checks_contents
        )

    def run_layers(
        self,
        layers: Sequence[DecoderLayer],
        hidden: Tensor,
        batch: RaggedBatch,
        kv_cache: Tensor,
    ) -> Tensor:
        """Layer by layer."""
        return run_layers(layers, hidden, batch, kv_cache)
