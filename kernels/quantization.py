"""Integer weights with scales: which ones a weight becomes, to the last bit.

INT8 has a scale for each output feature: its largest magnitude is 127 steps. INT4 has groups of 32
input features, each with a scale and an offset, fitted to leave little squared error. Both are
stored as a byte, in units of their own for each output feature. A weight then takes 4.5 bits. All
arithmetic is in float32 and each operation is rounded; sums run over input features in order.

Sources: LLM.int8() (Dettmers et al., NeurIPS 2022) for scales by channel; scales in steps of a
coarser one: QLoRA (Dettmers et al., NeurIPS 2023), section 3, double quantization.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.ops import WeightFormat

GROUP = 32
LEAST_SCALE = 1e-30
# Parts of a group's range that are tried, and how often each is fitted.
RANGE_PARTS = (1.0, 0.92, 0.84, 0.76)
NUM_ROUNDS = 2


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """Integers, and what they stand for: ``integers * scales + offsets``.

    ``integers`` are ``[out_features, in_features]`` int8; ``scales`` and ``offsets``
    ``[out_features, num_groups]`` float32: INT8 has one group, and offsets of 0. ``group_size``
    input features are a group, the last one may be shorter.
    """

    integers: Tensor
    scales: Tensor
    offsets: Tensor
    group_size: int

    def values(self) -> Tensor:
        """The weights that the integers stand for, ``[out_features, in_features]`` float32."""
        scales, offsets = (
            values.repeat_interleave(self.group_size, dim=1)[:, : self.integers.shape[1]]
            for values in (self.scales, self.offsets)
        )
        return self.integers * scales + offsets


def quantize(weight: Tensor, weight_format: WeightFormat) -> QuantizedWeight:
    """Quantize ``[out_features, in_features]``; what isn't finite makes its output feature NaN."""
    assert weight_format is not WeightFormat.DENSE
    wide = weight.float()
    return _quantize_int8(wide) if weight_format is WeightFormat.INT8 else _quantize_int4(wide)


def _quantize_int8(weight: Tensor) -> QuantizedWeight:
    scales = _units(weight, 127.0)
    whole = torch.where(scales > 0.0, torch.round(weight / scales), 0.0)
    return QuantizedWeight(
        whole.to(torch.int8), scales, torch.zeros_like(scales), max(1, weight.shape[1])
    )


def _quantize_int4(weight: Tensor) -> QuantizedWeight:
    out_features, in_features = weight.shape
    padded = torch.nn.functional.pad(weight, (0, -in_features % GROUP))
    groups = padded.view(out_features, -1, GROUP)
    fitted_scales, fitted_offsets = _fit(groups)
    broken = (groups - groups).sum(-1)  # NaN where not all is finite
    scale_units, offset_units = (
        _units(fitted, steps) for fitted, steps in ((fitted_scales, 255.0), (fitted_offsets, 127.0))
    )
    scale_units = scale_units + broken.sum(1, keepdim=True)
    scales = _round_to(fitted_scales, scale_units)
    offsets = _round_to(fitted_offsets, offset_units)
    whole = _nearest(groups, scales, offsets)
    whole = torch.where(scales.isnan()[..., None], 0.0, whole)
    integers = whole.to(torch.int8).view(out_features, -1)[:, :in_features]
    return QuantizedWeight(integers, scales, offsets, GROUP)


def _fit(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and offsets by least squares, each fitted to the integers of those before."""
    least, most = groups.amin(-1), groups.amax(-1)
    middle, half = (least + most) * 0.5, (most - least) * 0.5
    values = groups - middle[..., None]
    mean = _sum(values) * (1.0 / GROUP)
    best_scale, best_offset, best_gain = torch.zeros_like(mean), mean, torch.zeros_like(mean)
    for part in RANGE_PARTS:
        scale = half * part * torch.tensor(2.0 / 15.0)
        offset = scale * 0.5
        for _ in range(NUM_ROUNDS):
            whole = _nearest(values, scale, offset)
            total, squares = _sum(whole), _sum(whole * whole)
            whole_mean = total * (1.0 / GROUP)
            spread = squares - total * whole_mean
            shared = _sum(whole * values) - total * mean
            scale = torch.where((spread > 0.0) & (shared > 0.0), shared / spread, 0.0)
            offset = mean - scale * whole_mean
            gain = shared * scale
            is_better = gain > best_gain
            best_scale = torch.where(is_better, scale, best_scale)
            best_offset = torch.where(is_better, offset, best_offset)
            best_gain = torch.where(is_better, gain, best_gain)
    return best_scale, middle + best_offset


def _sum(values: Tensor) -> Tensor:
    """Sum over the last dimension, in order."""
    total = torch.zeros(values.shape[:-1])
    for column in values.unbind(-1):
        total = total + column
    return total


def _units(values: Tensor, steps: float) -> Tensor:
    """For each row, what a step is worth if so many make its largest magnitude."""
    most = values.abs().amax(dim=1, keepdim=True)
    units = torch.where(most > LEAST_SCALE, most / steps, 0.0)
    return units + (values - values).sum(dim=1, keepdim=True)


def _round_to(values: Tensor, units: Tensor) -> Tensor:
    """The multiples of units that are nearest."""
    return torch.round(values * _inverse(units)) * units


def _nearest(values: Tensor, scales: Tensor, offsets: Tensor) -> Tensor:
    """The integers of 4 bits that come nearest to values."""
    whole = torch.round((values - offsets[..., None]) * _inverse(scales)[..., None])
    return whole.clamp(-8.0, 7.0)


def _inverse(scales: Tensor) -> Tensor:
    return torch.where(scales.abs() > LEAST_SCALE, 1.0 / scales, 0.0)
