"""Checks of operands before their addresses are handed to the extension; each names what it got."""

import torch
from torch import Tensor

from kernels.layouts import check_contiguous_blocks, check_contiguous_heads, describe
from kernels.ops import RaggedBatch, ShapeError, WeightFormat

# Integer sums of more products might overflow.
MAX_QUANTIZED_FEATURES = 65536
# What the extension knows formats by.
FORMAT_BITS = {WeightFormat.DENSE: 0, WeightFormat.INT8: 8, WeightFormat.INT4: 4}
_IS_BF16 = {torch.float32: False, torch.bfloat16: True}


def check_dtype(name: str, x: Tensor) -> bool:
    """Check that a tensor is on the host, in float32 or bfloat16; say whether in bfloat16."""
    is_bf16 = _IS_BF16.get(x.dtype)
    if is_bf16 is None or not x.is_cpu:
        raise ShapeError(f"{name} is {describe(x)}; a float32 or bfloat16 CPU tensor is needed")
    return is_bf16


def check_matrix(name: str, x: Tensor) -> bool:
    """Check ``[rows, columns]`` with contiguous columns; say whether in bfloat16."""
    if x.dim() != 2 or x.stride(1) != 1:
        raise ShapeError(f"{name} is {describe(x)}; a matrix with contiguous rows is needed")
    return check_dtype(name, x)


def check_like(name: str, x: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Check that a tensor is contiguous on the host and has this shape and dtype."""
    if x.shape != shape or x.dtype is not dtype or not (x.is_contiguous() and x.is_cpu):
        raise ShapeError(f"{name} is {describe(x)}; contiguous {dtype}{list(shape)} is needed")


def check_heads(name: str, x: Tensor) -> bool:
    """Check ``[num_tokens, num_heads, head_dim]`` with contiguous heads; say whether bfloat16."""
    check_contiguous_heads(name, x)
    return check_dtype(name, x)


def check_blocks(name: str, kv_cache: Tensor) -> None:
    """Check that every block is contiguous on the host; blocks may lie at any distance."""
    check_contiguous_blocks(name, kv_cache)
    if not kv_cache.is_cpu:
        raise ShapeError(f"{name} is {describe(kv_cache)}; it must be on the host")


def check_cache(kv_cache: Tensor, layer: int, x: Tensor) -> None:
    """Check a cache, that it has the layer, and that ``x``'s heads fit its heads."""
    check_blocks("kv_cache", kv_cache)
    shape = kv_cache.shape
    if (
        not 0 <= layer < shape[1]
        or kv_cache.dtype is not x.dtype
        or x.shape[2] != shape[5]
        or x.shape[1] % shape[3]
    ):
        raise ShapeError(
            f"heads are {describe(x)}; kv_cache is {describe(kv_cache)}, its layer {layer} is used"
        )


def check_batch(batch: RaggedBatch, num_tokens: int) -> tuple[int, int]:
    """Check a batch's shapes; return its number of sequences and the width of its block tables.

    What the tensors say is checked by the extension.
    """
    num_seqs, max_blocks = batch.block_tables.shape
    int32 = torch.int32
    check_like("positions", batch.positions, (num_tokens,), int32)
    check_like("slots", batch.slots, (num_tokens,), torch.int64)
    check_like("query_start", batch.query_start, (num_seqs + 1,), int32)
    check_like("context_lens", batch.context_lens, (num_seqs,), int32)
    check_like("block_tables", batch.block_tables, (num_seqs, max_blocks), int32)
    return num_seqs, max_blocks
