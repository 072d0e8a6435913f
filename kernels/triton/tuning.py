"""Measures cuts of kernels on the device at hand; what it finds is returned, not kept.

Only what leaves a row's bits alone is varied: pipeline stages, and of linear layers, which have no
sums across threads, warps. Tiles, splits, depths and chunks stay, so that a tuned and an untuned
worker give the same tokens.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import torch
from triton.runtime.errors import OutOfResources

from kernels.ops import RaggedBatch
from kernels.triton.attention import padded, paged_attention
from kernels.triton.configs import ArchConfig, AttentionConfig, LinearConfig
from kernels.triton.linear import ceil_div, linear

Measure = Callable[[Callable[[], object]], float]

_WARPS = (4, 8)
_STAGES = (2, 3, 4, 5)
_MANY_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class TuningSizes:
    """What to tune for.

    Attributes:
        linears: (in_features, out_features) of linear layers.
        num_heads: Query heads; ``num_kv_heads`` likewise.
        num_kv_heads: See above.
        head_dim: Of queries, keys and values.
        block_size: Of the cache.
        num_seqs: Decodes of a step.
        context_len: Of each of them.
    """

    linears: tuple[tuple[int, int], ...]
    num_heads: int
    num_kv_heads: int
    head_dim: int
    block_size: int = 16
    num_seqs: int = 64
    context_len: int = 2048


class Tuner:
    """Measures cuts for one model on one device.

    Args:
        sizes: What to measure.
        dtype: Of weights and activations.
        device: Where to measure.
        measure: Times a call, such as ``triton.testing.do_bench``.
    """

    def __init__(
        self, sizes: TuningSizes, dtype: torch.dtype, device: torch.device, measure: Measure
    ) -> None:
        self._sizes = sizes
        self._dtype = dtype
        self._device = device
        self._measure = measure

    def tune(self, config: ArchConfig) -> ArchConfig:
        """The config with the fastest warps and stages for the sizes."""
        is_bf16 = self._dtype is torch.bfloat16
        linears = tuple(
            min(_linear_variants(cut), key=lambda variant: self._time_linear(config, variant))
            for cut in config.linear[is_bf16]
        )
        key = padded(self._sizes.head_dim), is_bf16
        attention = min(
            _attention_variants(config.attention[key]),
            key=lambda variant: self._time_attention(config, variant),
        )
        return replace(
            config,
            linear={**config.linear, is_bf16: linears},
            attention={**config.attention, key: attention},
        )

    def _time_linear(self, config: ArchConfig, cut: LinearConfig) -> float:
        only = replace(config, linear={self._dtype is torch.bfloat16: (cut,)})
        num_tokens = cut.max_tokens or _MANY_TOKENS
        total = 0.0
        for in_features, out_features in self._sizes.linears:
            x = self._random(num_tokens, in_features)
            total += self._time(partial(linear, only, x, self._random(out_features, in_features)))
        return total

    def _time_attention(self, config: ArchConfig, cut: AttentionConfig) -> float:
        sizes = self._sizes
        key = padded(sizes.head_dim), self._dtype is torch.bfloat16
        only = replace(config, attention={key: cut})
        width = ceil_div(sizes.context_len, sizes.block_size)
        num_blocks = width * sizes.num_seqs
        kv_cache = self._random(
            num_blocks, 1, 2, sizes.num_kv_heads, sizes.block_size, sizes.head_dim
        )
        query = self._random(sizes.num_seqs, sizes.num_heads, sizes.head_dim)
        batch = self._decodes(num_blocks, width)
        scale = sizes.head_dim**-0.5
        return self._time(lambda: paged_attention(only, query, kv_cache, 0, batch, scale))

    def _decodes(self, num_blocks: int, width: int) -> RaggedBatch:
        num_seqs, context_len = self._sizes.num_seqs, self._sizes.context_len

        def filled(value: int) -> torch.Tensor:
            return torch.full((num_seqs,), value, dtype=torch.int32, device=self._device)

        order = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(0), device="cpu")
        return RaggedBatch(
            positions=filled(context_len - 1),
            slots=filled(0).long(),
            query_start=torch.arange(num_seqs + 1, dtype=torch.int32, device=self._device),
            context_lens=filled(context_len),
            block_tables=order.view(num_seqs, width).to(self._device, torch.int32),
        )

    def _random(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, device=self._device).to(self._dtype)

    def _time(self, call: Callable[[], object]) -> float:
        try:
            return self._measure(call)
        except OutOfResources:
            return float("inf")


def _linear_variants(cut: LinearConfig) -> Iterator[LinearConfig]:
    for num_warps, num_stages in product(_WARPS, _STAGES):
        yield replace(cut, num_warps=num_warps, num_stages=num_stages)


def _attention_variants(cut: AttentionConfig) -> Iterator[AttentionConfig]:
    for num_stages in _STAGES:
        yield replace(cut, num_stages=num_stages)
