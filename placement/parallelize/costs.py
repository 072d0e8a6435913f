"""Seconds of operators on a mesh, by strategy: a roofline of each shard, and its collectives."""

import math
from dataclasses import dataclass

from placement.devices import DeviceType
from placement.parallelize.layouts import (
    ELEMENT_BYTES,
    HIDDEN,
    TOKENS,
    WHOLE,
    Activation,
    Axes,
    Axis,
    Features,
    all_gather_s,
    all_to_all_s,
    sum_s,
)
from placement.parallelize.stage import Phase
from placement.parallelize.strategies import (
    BY_EXPERTS,
    BY_HEADS,
    BY_SEQUENCES,
    CONTRACTION,
    EXPERTS_SENT,
    OUTPUT,
    WITHIN_EXPERTS,
    Strategy,
)
from placement.shape import ModelShape

NUM_CANDIDATES = 64
"""Of each sampled token, that devices with parts of the vocabulary tell each other."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What a device reaches: shares of its peak operations and bytes a second."""

    device: DeviceType
    compute_share: float = 0.7
    bandwidth_share: float = 0.8

    def roofline_s(self, flops: float, num_bytes: float, bits: int = 16) -> float:
        """Seconds of so many operations that move so many bytes.

        Source: Williams et al. (CACM 2009).
        """
        peak = self.device.matrix_flops_per_s(bits)
        moved_s = num_bytes / (self.device.bytes_per_s * self.bandwidth_share)
        return max(flops / (peak * self.compute_share), moved_s)


@dataclass(frozen=True, slots=True)
class Matrix:
    """A weight, which rows are multiplied with: ``inputs`` times ``outputs`` numbers."""

    inputs: Features
    outputs: Features
    bits: int

    def bytes_on(self, num_inputs: int, num_outputs: int) -> int:
        """Bytes of the largest piece, with each side cut into so many."""
        return -(-self.inputs.on(num_inputs) * self.outputs.on(num_outputs) * self.bits // 8)


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of operators on the devices of a mesh."""

    axes: Axes
    rates: Rates

    def pointwise_s(self, strategy: Strategy, activation: Activation, num_passes: int) -> float:
        """Something that reads or writes an activation so many times, element by element."""
        spec = tuple(choice.source for choice in strategy)
        return self.rates.roofline_s(0.0, num_passes * activation.bytes_on(spec, self.axes))

    def norm_s(self, strategy: Strategy, activation: Activation) -> float:
        """A norm of rows that the sum before hands on; devices with parts of them sum squares."""
        rows = -(-activation.rows // self._cut(strategy, "source", TOKENS))
        cut = self._axes(strategy, "source", HIDDEN)
        statistics_s = sum_s(cut, [], 4.0 * rows)
        return self.pointwise_s(strategy, activation, 1) + statistics_s

    def matmul_s(self, strategy: Strategy, rows: int, matrix: Matrix) -> float:
        """Rows times a matrix, and the sum of what devices have of the result."""
        rows = -(-rows // self._whole_tokens(strategy))
        num_inputs = self._cut(strategy, "kept", CONTRACTION)
        num_outputs = self._cut(strategy, "kept", OUTPUT)
        inputs, outputs = matrix.inputs.on(num_inputs), matrix.outputs.on(num_outputs)
        moved = matrix.bytes_on(num_inputs, num_outputs) + ELEMENT_BYTES * rows * (inputs + outputs)
        compute_s = self.rates.roofline_s(2.0 * rows * inputs * outputs, moved, matrix.bits)
        return compute_s + self._sum_s(strategy, CONTRACTION, ELEMENT_BYTES * rows * outputs)

    def lookup_s(self, strategy: Strategy, rows: int, matrix: Matrix) -> float:
        """Rows of an embedding, whose tokens all devices know."""
        rows = -(-rows // self._whole_tokens(strategy))
        outputs = matrix.outputs.on(self._cut(strategy, "kept", OUTPUT))
        num_bytes = ELEMENT_BYTES * rows * outputs
        compute_s = self.rates.roofline_s(0.0, 2.0 * num_bytes)
        return compute_s + self._sum_s(strategy, CONTRACTION, num_bytes)

    def sample_s(self, strategy: Strategy, logits: Activation) -> float:
        """The choice of a token of each row; all devices learn it."""
        seconds = self.pointwise_s(strategy, logits, 1)
        for axis, choice in zip(self.axes, strategy, strict=True):
            if choice.source == HIDDEN:
                seconds += all_gather_s(axis, 8.0 * NUM_CANDIDATES * logits.rows * axis.size)
            if choice.source == TOKENS:
                seconds += all_gather_s(axis, 4.0 * logits.rows)
        return seconds

    def attention_s(self, strategy: Strategy, shape: ModelShape, phase: Phase) -> float:
        """Attention of a layer, whose new tokens see those before them; infinite if impossible."""
        by_heads = self._cut(strategy, "kept", BY_HEADS)
        by_sequences = self._cut(strategy, "kept", BY_SEQUENCES)
        if not can_cut_heads(shape, by_heads) or by_sequences > phase.num_sequences:
            return math.inf
        gathered = self._whole_tokens_axes(strategy)
        by_tokens = math.prod(axis.size for axis in gathered)
        sequences = -(-phase.num_sequences // by_sequences)
        rows = math.ceil(sequences * phase.num_tokens / phase.num_sequences / by_tokens)
        heads = -(-shape.num_heads // by_heads) * shape.head_dim
        kv = 2 * -(-shape.num_kv_heads // by_heads) * shape.head_dim
        length = phase.context + phase.num_tokens / phase.num_sequences
        seen = max(1.0, sequences / by_tokens) * length
        kv_bytes = (seen + rows * by_tokens) * kv * shape.kv_bits / 8
        own_bytes = ELEMENT_BYTES * rows * (2 * heads + kv)
        flops = 4.0 * rows * (phase.context + 1) * heads
        seconds = self.rates.roofline_s(flops, kv_bytes + own_bytes)
        num_bytes = float(ELEMENT_BYTES * rows * kv)
        for axis in gathered:
            num_bytes *= axis.size
            seconds += all_gather_s(axis, num_bytes)
        return seconds

    def router_s(self, strategy: Strategy, activation: Activation, num_experts: int) -> float:
        """The choice of each token's experts."""
        rows = -(-activation.rows // self._cut(strategy, "source", TOKENS))
        cut = self._axes(strategy, "source", HIDDEN)
        width = activation.features.on(math.prod(axis.size for axis in cut))
        moved = ELEMENT_BYTES * (rows * width + (rows + width) * num_experts)
        compute_s = self.rates.roofline_s(2.0 * rows * width * num_experts, moved)
        return compute_s + sum_s(cut, [], ELEMENT_BYTES * rows * num_experts)

    def experts_s(self, strategy: Strategy, shape: ModelShape, rows: int) -> float:
        """A layer's experts, each token's evenly spread: up, gate, activation and down.

        Where tokens are sent, each goes to the devices of its experts and its results come back.
        """
        sent = [a for a, choice in zip(self.axes, strategy, strict=True) if choice == EXPERTS_SENT]
        own_rows = -(-rows // self._whole_tokens(strategy))
        rows = -(-own_rows // math.prod(axis.size for axis in sent))
        experts = min(self._cut(strategy, "kept", BY_EXPERTS), shape.num_experts)
        width = -(-shape.intermediate_size // self._cut(strategy, "kept", WITHIN_EXPERTS))
        taken = -(-own_rows * shape.num_active_experts // experts)
        numbers = (3 if shape.is_gated else 2) * shape.hidden_size * width
        idle = (1.0 - shape.num_active_experts / shape.num_experts) ** own_rows
        used = -(-shape.num_experts // experts) * (1.0 - idle)
        moved = used * numbers * shape.weight_bits / 8
        moved += ELEMENT_BYTES * taken * (2 * shape.hidden_size + 3 * width)
        seconds = self.rates.roofline_s(2.0 * taken * numbers, moved, shape.weight_bits)
        num_bytes = ELEMENT_BYTES * rows * shape.hidden_size
        for axis in sent:
            seconds += 2 * all_to_all_s(axis, num_bytes * shape.num_active_experts)
        return seconds + self._sum_s(strategy, None, num_bytes)

    def _sum_s(self, strategy: Strategy, kept: int | None, num_bytes: float) -> float:
        """Seconds to sum results over axes that have parts of them, as their choices say."""
        pairs = list(zip(self.axes, strategy, strict=True))
        parts = [
            (axis, choice)
            for axis, choice in pairs
            if choice.kept != WHOLE and kept in (None, choice.kept) and choice != EXPERTS_SENT
        ]
        summed = [axis for axis, choice in parts if choice.target == WHOLE]
        scattered = [axis for axis, choice in parts if choice.target == TOKENS]
        return sum_s(summed, scattered, num_bytes)

    def _axes(self, strategy: Strategy, side: str, kind: int) -> list[Axis]:
        pairs = zip(self.axes, strategy, strict=True)
        return [axis for axis, choice in pairs if getattr(choice, side) == kind]

    def _cut(self, strategy: Strategy, side: str, kind: int) -> int:
        return math.prod(axis.size for axis in self._axes(strategy, side, kind))

    def _whole_tokens_axes(self, strategy: Strategy) -> list[Axis]:
        pairs = zip(self.axes, strategy, strict=True)
        return [axis for axis, each in pairs if each.source == TOKENS and each.kept == WHOLE]

    def _whole_tokens(self, strategy: Strategy) -> int:
        return math.prod(axis.size for axis in self._whole_tokens_axes(strategy))


def can_cut_heads(shape: ModelShape, num_devices: int) -> bool:
    """Whether so many devices can share the heads; KV heads may be held by several of them."""
    fits_kv = shape.num_kv_heads % num_devices == 0 or num_devices % shape.num_kv_heads == 0
    return shape.num_heads % num_devices == 0 and fits_kv
