"""Whole KV blocks between caches and contiguous staging, a launch for any number of blocks."""

import torch
from torch import Tensor

from kernels.layouts import check_contiguous_blocks, describe
from kernels.ops import ShapeError
from kernels.triton.jit import cache as jit
from kernels.triton.linear import ceil_div

_MOVE_COLUMNS = 4096


def gather_blocks(kv_cache: Tensor, block_ids: Tensor, staging: Tensor) -> None:
    """Copy scattered blocks into contiguous staging.

    Args:
        kv_cache: See kernels.ops.
        block_ids: ``[num_ids]`` int64 on the cache's device; ids outside the cache are skipped.
        staging: ``[num_ids or more, num_layers, 2, num_kv_heads, block_size, head_dim]``: a buffer
            of the same device, or pinned host memory, which kernels can write too.

    Raises:
        ShapeError: Staging doesn't fit the blocks.
    """
    _check_staging(kv_cache, block_ids, staging)
    _move(kv_cache, staging, block_ids, None, len(block_ids))


def scatter_blocks(staging: Tensor, block_ids: Tensor, kv_cache: Tensor) -> None:
    """Copy contiguous staging into scattered blocks; arguments as of :func:`gather_blocks`."""
    _check_staging(kv_cache, block_ids, staging)
    _move(staging, kv_cache, None, block_ids, len(block_ids))


def copy_pairs(source: Tensor, target: Tensor, pairs: Tensor, device_type: str) -> None:
    """Copy blocks between caches, one of which at least is on the device.

    Args:
        source: See Backend.copy_blocks.
        target: Likewise.
        pairs: ``[num_pairs, 2]`` int64 on the host.
        device_type: Where the kernels run; a cache elsewhere is read or written by torch.
    """
    if len(pairs) == 0:
        return
    if source.device == target.device and source.device.type == device_type:
        ids = pairs.to(source.device, non_blocking=True)
        _move(source, target, ids[:, 0], ids[:, 1], len(ids))
    elif source.device.type == device_type:
        staging = source.new_empty((len(pairs), *source.shape[1:]))
        gather_blocks(source, pairs[:, 0].to(source.device), staging)
        target[pairs[:, 1].to(target.device)] = staging.to(target.device)
    else:
        staging = source[pairs[:, 0].to(source.device)].to(target.device)
        scatter_blocks(staging, pairs[:, 1].to(target.device), target)


def check_same_blocks(source: Tensor, target: Tensor) -> None:
    """Check that two caches' blocks can be copied to each other.

    Raises:
        ShapeError: Names both.
    """
    check_contiguous_blocks("source", source)
    check_contiguous_blocks("target", target)
    if source.shape[1:] != target.shape[1:] or source.dtype is not target.dtype:
        raise ShapeError(f"source is {describe(source)}, target {describe(target)}")


def _check_staging(kv_cache: Tensor, block_ids: Tensor, staging: Tensor) -> None:
    check_same_blocks(kv_cache, staging)
    if block_ids.dim() != 1 or block_ids.dtype is not torch.int64:
        raise ShapeError(f"block_ids is {describe(block_ids)}; [num_ids] int64 is needed")
    if len(staging) < len(block_ids):
        raise ShapeError(f"{len(block_ids)} blocks don't fit staging {describe(staging)}")


def _move(
    source: Tensor,
    target: Tensor,
    source_ids: Tensor | None,
    target_ids: Tensor | None,
    num_blocks: int,
) -> None:
    ids = target_ids if source_ids is None else source_ids
    if num_blocks == 0 or ids is None:
        return
    elements = source.shape[1:].numel()
    jit.move_blocks[(num_blocks, ceil_div(elements, _MOVE_COLUMNS))](
        source,
        target,
        ids if source_ids is None else source_ids,
        ids if target_ids is None else target_ids,
        ids.stride(0),
        source.stride(0),
        target.stride(0),
        source.shape[0],
        target.shape[0],
        elements,
        HAS_SOURCE_IDS=source_ids is not None,
        HAS_TARGET_IDS=target_ids is not None,
        COLUMNS=_MOVE_COLUMNS,
    )
