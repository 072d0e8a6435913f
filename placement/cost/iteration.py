"""Seconds of one iteration by a roofline: arithmetic or memory, whichever takes longer.

Sources: Roofline (Williams et al., CACM 2009); the all-reduce of a ring by its delay and bytes
(Thakur et al., IJHPCA 2005); two of them in a layer (Megatron-LM, Shoeybi et al., 2019).
"""

from dataclasses import dataclass

from fabric.core.plan import ParallelConfig
from placement.cost.calibration import Calibration
from placement.cost.sizes import (
    kv_heads_per_device,
    layer_bytes,
    stages_of,
    vocabulary_bytes,
)
from placement.devices import DeviceType, Link
from placement.shape import ModelShape


@dataclass(frozen=True, slots=True)
class Work:
    """What one iteration computes.

    ``prompt_tokens`` of prompts, ``num_prompts`` of which end in it, with ``prompt_pairs`` pairs
    of a token and one that it attends to; and a token of each of ``num_sequences``, which has
    ``context`` tokens before it. Averages may be fractions.
    """

    prompt_tokens: float = 0.0
    num_prompts: float = 0.0
    prompt_pairs: float = 0.0
    num_sequences: float = 0.0
    context: float = 0.0

    @classmethod
    def prompts(cls, length: float, count: float = 1.0) -> "Work":
        """Whole prompts, of one length."""
        return cls(length * count, count, prompt_pairs=count * length * (length + 1) / 2)

    @classmethod
    def decode(cls, num_sequences: float, context: float) -> "Work":
        """A token of each of so many sequences."""
        return cls(num_sequences=num_sequences, context=context)

    @property
    def num_tokens(self) -> float:
        """Tokens that go through the layers."""
        return self.prompt_tokens + self.num_sequences

    @property
    def num_sampled(self) -> float:
        """Tokens that go through the head."""
        return self.num_prompts + self.num_sequences


@dataclass(frozen=True, slots=True)
class Roofline:
    """A model, cut over devices of one type that have been calibrated."""

    shape: ModelShape
    device: DeviceType
    parallel: ParallelConfig
    calibration: Calibration

    def seconds(self, work: Work) -> float:
        """Seconds of an iteration, from the first stage's start to the last one's end."""
        handing_on_s = (self.parallel.pipeline - 1) * self._handing_on_s(work)
        return self.shape.num_layers * self._layer_s(work) + self._end_s(work) + handing_on_s

    def stage_seconds(self, work: Work) -> tuple[float, ...]:
        """Seconds of each stage; handing on to the next one is the earlier stage's."""
        layer_s = self._layer_s(work)
        end_s, handing_on_s = self._end_s(work), self._handing_on_s(work)
        return tuple(
            stage.num_layers * layer_s + (end_s if stage.is_last else handing_on_s)
            for stage in stages_of(self.shape, self.parallel.pipeline)
        )

    def _layer_s(self, work: Work) -> float:
        matrices_s = self._bound_s(
            2 * self.shape.active_layer_matrices * work.num_tokens / self.parallel.tensor,
            self._layer_bytes(work.num_tokens),
            self.shape.weight_bits,
        )
        return matrices_s + self._attention_s(work) + self._all_reduces_s(work)

    def _layer_bytes(self, num_tokens: float) -> float:
        """Bytes of the weights that are read: of experts, those that some token chose."""
        shape, tensor = self.shape, self.parallel.tensor
        if shape.num_experts == 1:
            return layer_bytes(shape, tensor)
        idle = 1 - shape.num_active_experts / shape.num_experts
        num_idle: float = shape.num_experts * idle**num_tokens
        idle_numbers = num_idle * shape.expert_matrices / tensor
        return layer_bytes(shape, tensor) - idle_numbers * shape.weight_bits / 8

    def _attention_s(self, work: Work) -> float:
        """Prompts are bound by arithmetic; a token of a sequence reads all its KV."""
        shape, tensor = self.shape, self.parallel.tensor
        pair_flops = 4 * shape.num_heads * shape.head_dim / tensor
        heads = kv_heads_per_device(shape, tensor)
        token_bytes = 2 * heads * shape.head_dim * shape.kv_bits / 8
        prompts_s = self._bound_s(pair_flops * work.prompt_pairs, 0.0)
        num_read = work.num_sequences * work.context
        return prompts_s + self._bound_s(pair_flops * num_read, token_bytes * num_read)

    def _end_s(self, work: Work) -> float:
        """The head, and sampling."""
        if not work.num_sampled:
            return 0.0
        shape, tensor = self.shape, self.parallel.tensor
        flops = 2 * shape.vocab_size * shape.hidden_size * work.num_sampled / tensor
        head_s = self._bound_s(flops, vocabulary_bytes(shape, tensor), shape.outer_bits)
        return head_s + self.calibration.sequence_s * work.num_sampled

    def _bound_s(self, flops: float, num_bytes: float, bits: int = 16) -> float:
        flops_per_s = self.calibration.matrix_efficiency * self.device.matrix_flops_per_s(bits)
        bytes_per_s = self.calibration.memory_efficiency * self.device.bytes_per_s
        return max(flops / flops_per_s, num_bytes / bytes_per_s)

    def _all_reduces_s(self, work: Work) -> float:
        """What a layer takes besides: two all-reduces, their delays, and launching its kernels."""
        tensor = self.parallel.tensor
        if tensor == 1:
            return self.calibration.layer_s
        link = self._link(tensor)
        bytes_per_s = self.calibration.link_efficiency * link.bytes_per_s
        share = 2 * (tensor - 1) / tensor
        all_reduce_s = link.latency_s + share * self._activation_bytes(work) / bytes_per_s
        return self.calibration.layer_s + 2 * all_reduce_s

    def _handing_on_s(self, work: Work) -> float:
        if self.parallel.pipeline == 1:
            return 0.0
        link = self._link(self.parallel.num_devices)
        bytes_per_s = self.calibration.link_efficiency * link.bytes_per_s
        return link.latency_s + self._activation_bytes(work) / bytes_per_s

    def _link(self, num_devices: int) -> Link:
        """The slowest link among so many neighbouring devices."""
        is_inside = num_devices <= self.device.devices_per_node
        return self.device.inside if is_inside else self.device.outside

    def _activation_bytes(self, work: Work) -> float:
        return work.num_tokens * self.shape.hidden_size * self.shape.outer_bits / 8
