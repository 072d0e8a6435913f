"""Paged attention on the device: how rows and splits are shared out over programs."""

import math

import torch
from torch import Tensor

from kernels.ops import RaggedBatch
from kernels.triton.configs import ArchConfig
from kernels.triton.jit import attention as jit
from kernels.triton.linear import ceil_div


def padded(size: int, least: int = 16) -> int:
    """The next power of two, which Triton's tiles need, of at least ``least``."""
    return max(least, 1 << (size - 1).bit_length())


def paged_attention(
    config: ArchConfig,
    query: Tensor,
    kv_cache: Tensor,
    layer: int,
    batch: RaggedBatch,
    scale: float,
) -> Tensor:
    """See Backend.paged_attention; grids follow shapes alone, the longest context block_tables."""
    num_tokens, num_heads, head_dim = query.shape
    num_blocks, _, _, num_kv_heads, block_size, _ = kv_cache.shape
    num_seqs, max_blocks = batch.block_tables.shape
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    if num_tokens == 0 or num_seqs == 0:
        return out
    columns = padded(head_dim)
    cut = config.attention[columns, query.dtype is torch.bfloat16]
    group = num_heads // num_kv_heads
    # A tile does not cross sequences: each may leave one of its tiles unfilled.
    num_tiles = num_tokens * group // cut.rows + num_seqs
    max_splits = ceil_div(max_blocks * block_size, cut.split)
    wanted = ceil_div(config.num_programs, num_tiles * num_kv_heads)
    sharers = max(1, min(max_splits, max(wanted, config.min_sharers)))
    # The most new tokens of a sequence whose context is shared.
    partial_tokens = min(max(1, cut.rows // group), max(1, num_tokens // num_seqs))
    places = num_seqs * partial_tokens if sharers > 1 else 0
    partial = out.new_empty((places, num_heads, max_splits, head_dim), dtype=torch.float32)
    state = out.new_empty((places, num_heads, max_splits, 2), dtype=torch.float32)
    jit.paged_attention[(num_tiles, num_kv_heads, sharers)](
        query,
        out,
        kv_cache,
        partial,
        state,
        batch.query_start,
        batch.context_lens,
        batch.block_tables,
        query.stride(0),
        kv_cache.stride(0),
        layer * kv_cache.stride(1),
        num_seqs,
        max_blocks,
        num_blocks,
        max_splits,
        partial_tokens,
        scale * math.log2(math.e),
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        BLOCK_SIZE=block_size,
        HEAD_DIM=head_dim,
        COLUMNS=columns,
        ROWS=cut.rows,
        TILE=cut.tile,
        SPLIT=cut.split,
        num_warps=cut.num_warps,
        num_stages=cut.num_stages,
        enable_fp_fusion=False,
    )
    if sharers > 1:
        jit.fold_splits[(places, num_heads)](
            partial,
            state,
            out,
            batch.query_start,
            batch.context_lens,
            max_blocks * block_size,
            max_splits,
            partial_tokens,
            NUM_HEADS=num_heads,
            HEAD_DIM=head_dim,
            COLUMNS=columns,
            SPLIT=cut.split,
            num_warps=1,
            enable_fp_fusion=False,
        )
    return out
