"""Launches of what works token by token: norms, activation, rope, storing keys and values."""

import torch
from torch import Tensor

from kernels.triton.attention import padded
from kernels.triton.jit import cache as jit_cache
from kernels.triton.jit import rows as jit
from kernels.triton.linear import ceil_div

_ACTIVATION_COLUMNS = 1024


def rms_norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """Norm of each row; first added to the residual in place, if there is one."""
    num_tokens, columns = x.shape
    out = torch.empty((num_tokens, columns), dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    size = padded(columns)
    jit.rms_norm[(num_tokens,)](
        x,
        out if residual is None else residual,
        weight,
        out,
        x.stride(0),
        columns,
        eps,
        HAS_RESIDUAL=residual is not None,
        COLUMNS=size,
        num_warps=min(16, max(1, size // 512)),
        enable_fp_fusion=False,
    )
    return out


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """``silu(gate) * up`` of each row."""
    num_tokens, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((num_tokens, size), dtype=gate_up.dtype, device=gate_up.device)
    if out.numel() == 0:
        return out
    columns = min(_ACTIVATION_COLUMNS, padded(size))
    jit.silu_and_mul[(num_tokens, ceil_div(size, columns))](
        gate_up, out, gate_up.stride(0), size, COLUMNS=columns, enable_fp_fusion=False
    )
    return out


def rope(query: Tensor, key: Tensor, positions: Tensor, cos_sin: Tensor) -> None:
    """Rotate query and key in place."""
    num_tokens, num_heads, head_dim = query.shape
    if num_tokens == 0:
        return
    jit_cache.rope[(num_tokens, 2)](
        query,
        key,
        positions,
        cos_sin,
        query.stride(0),
        key.stride(0),
        cos_sin.shape[0],
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=key.shape[1],
        HEADS=padded(num_heads, least=1),
        KV_HEADS=padded(key.shape[1], least=1),
        HEAD_DIM=head_dim,
        COLUMNS=padded(head_dim // 2, least=1),
        num_warps=4,
        enable_fp_fusion=False,
    )


def store_kv(key: Tensor, value: Tensor, kv_cache: Tensor, layer: int, slots: Tensor) -> None:
    """Copy each token's heads to their slots."""
    # The interpreter pays for programs, not for elements.
    tokens = 16 if key.is_cpu else 1
    num_tokens, num_kv_heads, head_dim = key.shape
    if num_tokens == 0:
        return
    block_size = kv_cache.shape[4]
    jit_cache.store_kv[(ceil_div(num_tokens, tokens),)](
        key,
        value,
        kv_cache,
        slots,
        num_tokens,
        key.stride(0),
        value.stride(0),
        kv_cache.stride(0),
        layer * kv_cache.stride(1),
        kv_cache.shape[0] * block_size,
        NUM_KV_HEADS=num_kv_heads,
        BLOCK_SIZE=block_size,
        HEAD_DIM=head_dim,
        TOKENS=tokens,
        COLUMNS=padded(num_kv_heads * head_dim),
        num_warps=4,
    )


def rope_and_store(
    qkv: Tensor,
    bias: Tensor | None,
    kv_cache: Tensor,
    layer: int,
    token_places: tuple[Tensor, Tensor],
    cos_sin: Tensor,
) -> None:
    """Add the bias, rotate queries in place, rotate keys into their slots, copy values there.

    Args:
        qkv: ``[num_tokens, (num_heads + 2 * num_kv_heads) * head_dim]``; keys and values in it
            stay as they were.
        bias: As wide as ``qkv``, or None.
        kv_cache: See kernels.ops; written in place.
        layer: Layer index.
        token_places: Positions and slots of the tokens, see RaggedBatch.
        cos_sin: See Backend.rope.
    """
    num_tokens, width = qkv.shape
    num_kv_heads, block_size, head_dim = kv_cache.shape[3:]
    num_heads = width // head_dim - 2 * num_kv_heads
    if num_tokens == 0:
        return
    positions, slots = token_places
    jit_cache.rope_and_store[(num_tokens, 3)](
        qkv,
        qkv if bias is None else bias,
        kv_cache,
        positions,
        slots,
        cos_sin,
        qkv.stride(0),
        kv_cache.stride(0),
        layer * kv_cache.stride(1),
        kv_cache.shape[0] * block_size,
        cos_sin.shape[0],
        HAS_BIAS=bias is not None,
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEADS=padded(num_heads, least=1),
        KV_HEADS=padded(num_kv_heads, least=1),
        BLOCK_SIZE=block_size,
        HEAD_DIM=head_dim,
        COLUMNS=padded(head_dim // 2, least=1),
        num_warps=4,
        enable_fp_fusion=False,
    )
