"""Linear layers with integer weights: how these are laid out in bytes, and their launches.

INT8: ``[out_features, padded in_features]`` int8, rows padded to 16 bytes, then a float32 scale for
each output feature. INT4, with pairs of groups of 32 input features: ``[out_features, num_pairs *
32]`` bytes, of which low halves are a pair's first group and high halves its second, each integer
plus 8; then ``[2 * num_pairs, out_features]`` scales in steps of a unit, uint8, and as many
offsets, int8; then float32 units of scales and of offsets for each output feature.
"""

import torch
from torch import Tensor

from kernels.layouts import describe
from kernels.ops import PackedLinear, ShapeError, WeightFormat
from kernels.quantization import GROUP, QuantizedWeight, quantize
from kernels.triton.configs import ArchConfig
from kernels.triton.jit import linear as jit
from kernels.triton.linear import RUNNING_GROUP, ceil_div, fold, linear, share_out

_ROW_BYTES = 16
_PAIR = 2 * GROUP
_SCALE_STEPS = 255.0
_OFFSET_STEPS = 127.0


def packed_shape(
    out_features: int, in_features: int, weight_format: WeightFormat
) -> tuple[int, int]:
    """Bytes of an integer weight: those of each output feature's integers, scales and units."""
    if weight_format is WeightFormat.INT8:
        return out_features, ceil_div(in_features, _ROW_BYTES) * _ROW_BYTES + 4
    return out_features, ceil_div(in_features, _PAIR) * (GROUP + 4) + 8


def pack(weight: Tensor, weight_format: WeightFormat, out: Tensor | None) -> PackedLinear:
    """Quantize a weight and lay it out; on any device, without kernels.

    Raises:
        ShapeError: ``out`` isn't contiguous uint8 of the packed shape.
    """
    out_features, in_features = weight.shape
    shape = packed_shape(out_features, in_features, weight_format)
    if out is None:
        out = torch.empty(shape, dtype=torch.uint8, device=weight.device)
    if out.shape != shape or out.dtype is not torch.uint8 or not out.is_contiguous():
        raise ShapeError(f"out is {describe(out)}; contiguous uint8 {list(shape)} is needed")
    quantized = quantize(weight, weight_format)
    parts = _int8_parts if weight_format is WeightFormat.INT8 else _int4_parts
    flat = [part.contiguous().view(torch.uint8).flatten() for part in parts(quantized)]
    torch.cat(flat, out=out.view(-1))
    return PackedLinear(out, out_features, in_features, weight.dtype, weight_format)


def linear_int8(config: ArchConfig, x: Tensor, weight: PackedLinear) -> Tensor:
    """``x @ weight.T``; integers are multiplied exactly, and sums scaled."""
    out_features, row_bytes = weight.data.shape
    flat = weight.data.view(-1)
    end = out_features * (row_bytes - 4)
    integers = flat[:end].view(torch.int8).view(out_features, -1)
    return linear(config, x, integers, flat[end:].view(torch.float32))


def linear_int4(config: ArchConfig, x: Tensor, weight: PackedLinear) -> Tensor:
    """``x @ weight.T``; integers are multiplied exactly, and each group's sums scaled."""
    num_tokens, in_features = x.shape
    out_features = weight.out_features
    out = torch.empty((num_tokens, out_features), dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    num_pairs = ceil_div(in_features, _PAIR)
    sizes = [
        size * out_features for size in (num_pairs * GROUP, 2 * num_pairs, 2 * num_pairs, 4, 4)
    ]
    nibbles, scales, offsets, scale_units, offset_units = torch.split(weight.data.view(-1), sizes)
    share = share_out(config, x, out)
    cut = share.cut
    jit.linear_int4[share.grid](
        x,
        nibbles,
        scales,
        offsets.view(torch.int8),
        scale_units.view(torch.float32),
        offset_units.view(torch.float32),
        out,
        share.partial,
        num_tokens,
        in_features,
        out_features,
        x.stride(0),
        num_pairs * GROUP,
        FEATURES=cut.features,
        TOKENS=cut.tokens,
        CHUNK=cut.chunk,
        SIZE=GROUP,
        GROUP=RUNNING_GROUP,
        num_warps=cut.num_warps,
        num_stages=cut.num_stages,
        enable_fp_fusion=False,
    )
    if share.is_shared:
        fold(share.partial, None, out, is_integer=True)
    return out


def _int8_parts(quantized: QuantizedWeight) -> list[Tensor]:
    in_features = quantized.integers.shape[1]
    padded = torch.nn.functional.pad(quantized.integers, (0, -in_features % _ROW_BYTES))
    return [padded, quantized.scales]


def _int4_parts(quantized: QuantizedWeight) -> list[Tensor]:
    out_features, in_features = quantized.integers.shape
    padded = torch.nn.functional.pad(quantized.integers + 8, (0, -in_features % _PAIR))
    pairs = padded.view(out_features, -1, 2, GROUP).to(torch.uint8)
    scales, scale_units = _in_steps(quantized.scales, _SCALE_STEPS)
    offsets, offset_units = _in_steps(quantized.offsets, _OFFSET_STEPS)
    return [
        pairs[:, :, 0] | pairs[:, :, 1] << 4,
        scales.to(torch.uint8).T,
        offsets.to(torch.int8).T,
        scale_units,
        offset_units,
    ]


def _in_steps(values: Tensor, steps: float) -> tuple[Tensor, Tensor]:
    """Multiples of a unit for each row, an even number of them, and the units."""
    units = values.abs().amax(dim=1, keepdim=True) / steps
    # Of neighbours, the unit whose multiples are these values to the last bit.
    for bound in (0.0, float("inf")):
        other = torch.nextafter(units, torch.full_like(units, bound))
        is_exact = (_multiples(values, other) * other == values).all(dim=1, keepdim=True)
        units = torch.where(is_exact, other, units)
    return torch.nn.functional.pad(_multiples(values, units), (0, values.shape[1] % 2)), units


def _multiples(values: Tensor, units: Tensor) -> Tensor:
    return torch.where(units > 0.0, torch.round(values / units), 0.0)
