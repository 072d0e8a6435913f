"""The operations in plain torch, for any device: what the other backends must compute."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.composed import ComposedLayer, run_layers
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
from kernels.quantization import quantize


class ReferenceBackend:
    """The specification of the operations' values, though not of their rounding.

    It is written to be read. It gathers blocks and leaves the order of sums to torch, so it is
    neither fast nor row-invariant to the last bit.
    """

    packing = PLAIN

    def packed_shape(
        self,
        out_features: int,
        in_features: int,
        dtype: torch.dtype,
        weight_format: WeightFormat = WeightFormat.DENSE,
    ) -> tuple[int, int]:
        """The weight's own; of integers, that of the bytes of float32 values."""
        return out_features, in_features * (1 if weight_format is WeightFormat.DENSE else 4)

    def pack_linear(
        self,
        weight: Tensor,
        weight_format: WeightFormat = WeightFormat.DENSE,
        out: Tensor | None = None,
    ) -> PackedLinear:
        """Keep the weight as it is, or the float32 values that its integers stand for."""
        out_features, in_features = weight.shape
        data = weight
        if weight_format is not WeightFormat.DENSE:
            data = quantize(weight, weight_format).values().contiguous().view(torch.uint8)
        return PackedLinear(data, out_features, in_features, weight.dtype, weight_format)

    def linear(self, x: Tensor, weight: PackedLinear) -> Tensor:
        """``x @ weight.T``."""
        if x.shape[-1] != weight.in_features or x.dtype != weight.dtype:
            raise ShapeError(
                f"x is {x.dtype}{list(x.shape)}; the weight takes {weight.dtype}"
                f"[num_tokens, {weight.in_features}]"
            )
        is_dense = weight.format is WeightFormat.DENSE
        values = weight.data.float() if is_dense else weight.data.view(torch.float32)
        return (x.float() @ values.T).to(x.dtype)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """``x / rms(x) * weight``."""
        wide = x.float()
        mean_square = wide.square().mean(dim=-1, keepdim=True)
        return (wide * torch.rsqrt(mean_square + eps) * weight.float()).to(x.dtype)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Add to the residual, then norm what was stored there."""
        residual += x
        return self.rms_norm(residual, weight, eps)

    def rope(self, query: Tensor, key: Tensor, positions: Tensor, cos_sin: Tensor) -> None:
        """Rotate the pairs (i, i + head_dim / 2)."""
        cos, sin = cos_sin[positions.long()].unsqueeze(1).chunk(2, dim=-1)
        for x in (query, key):
            first, second = x.float().chunk(2, dim=-1)
            x.copy_(torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1))

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        """``silu(gate) * up``."""
        gate, up = gate_up.float().chunk(2, dim=-1)
        return (torch.nn.functional.silu(gate) * up).to(gate_up.dtype)

    def store_kv(
        self, key: Tensor, value: Tensor, kv_cache: Tensor, layer: int, slots: Tensor
    ) -> None:
        """Write by (block, offset)."""
        block_size = kv_cache.shape[4]
        blocks, offsets = slots // block_size, slots % block_size
        kv_cache[blocks, layer, 0, :, offsets] = key
        kv_cache[blocks, layer, 1, :, offsets] = value

    def paged_attention(
        self, query: Tensor, kv_cache: Tensor, layer: int, batch: RaggedBatch, scale: float
    ) -> Tensor:
        """Gather each sequence's keys and values, mask later positions, softmax."""
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        starts = batch.query_start.tolist()
        for i, context_len in enumerate(batch.context_lens.tolist()):
            tokens = slice(starts[i], starts[i + 1])
            keys, values = _gather_kv(kv_cache, layer, batch.block_tables[i], context_len)
            group = query.shape[1] // keys.shape[1]
            keys = keys.repeat_interleave(group, dim=1)
            values = values.repeat_interleave(group, dim=1)
            scores = torch.einsum("thd,khd->htk", query[tokens].float(), keys) * scale
            key_positions = torch.arange(context_len, device=query.device)
            is_later = key_positions[None, :] > batch.positions[tokens, None]
            weights = scores.masked_fill(is_later, float("-inf")).softmax(dim=-1)
            out[tokens] = torch.einsum("htk,khd->thd", weights, values).to(query.dtype)
        return out

    def copy_blocks(self, source: Tensor, target: Tensor, pairs: Tensor) -> None:
        """Copy by block id."""
        if source.shape[1:] != target.shape[1:] or source.dtype != target.dtype:
            raise ShapeError(
                f"blocks of {source.dtype}{list(source.shape[1:])} don't fit "
                f"{target.dtype}{list(target.shape[1:])}"
            )
        target[pairs[:, 1].to(target.device)] = source[pairs[:, 0].to(source.device)].to(
            target.device
        )

    def decoder_layer(
        self, shape: DecoderShape, weights: DecoderWeights, index: int
    ) -> DecoderLayer:
        """The operations above, one after the other."""
        return ComposedLayer(self, shape, weights, index)

    def run_layers(
        self,
        layers: Sequence[DecoderLayer],
        hidden: Tensor,
        batch: RaggedBatch,
        kv_cache: Tensor,
    ) -> Tensor:
        """Layer by layer."""
        return run_layers(layers, hidden, batch, kv_cache)


def _gather_kv(
    kv_cache: Tensor, layer: int, block_table: Tensor, context_len: int
) -> tuple[Tensor, Tensor]:
    """One sequence's keys and values in float32, each ``[context_len, num_kv_heads, head_dim]``."""
    block_size = kv_cache.shape[4]
    positions = torch.arange(context_len, device=kv_cache.device)
    blocks = block_table[positions // block_size].long()
    offsets = positions % block_size
    keys, values = (kv_cache[blocks, layer, half, :, offsets].float() for half in (0, 1))
    return keys, values
