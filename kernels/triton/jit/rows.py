"""Norms and the activation: one program a row (or a part of one), no row sees another."""

import triton
import triton.language as tl

from kernels.triton.jit.numerics import narrow, widen


@triton.jit
def rms_norm(
    x_ptr,
    residual_ptr,
    weight_ptr,
    out_ptr,
    x_stride,
    columns,
    eps,
    HAS_RESIDUAL: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Norm of row ``program_id(0)``; first added to the residual, if there is one."""
    row = tl.program_id(0).to(tl.int64)
    offsets = tl.arange(0, COLUMNS)
    mask = offsets < columns
    x = widen(tl.load(x_ptr + row * x_stride + offsets, mask=mask, other=0.0))
    if HAS_RESIDUAL:
        residual_ptrs = residual_ptr + row * columns + offsets
        x += widen(tl.load(residual_ptrs, mask=mask, other=0.0))
        stored = narrow(x, residual_ptr.dtype.element_ty)
        tl.store(residual_ptrs, stored, mask=mask)
        x = widen(stored)
    scale = tl.rsqrt(tl.sum(x * x, axis=0) / columns + eps)
    weight = widen(tl.load(weight_ptr + offsets, mask=mask, other=0.0))
    out = narrow(x * scale * weight, out_ptr.dtype.element_ty)
    tl.store(out_ptr + row * columns + offsets, out, mask=mask)


@triton.jit
def silu_and_mul(gate_up_ptr, out_ptr, stride, size, COLUMNS: tl.constexpr):
    """``silu(gate) * up`` of row ``program_id(0)``, part ``program_id(1)``."""
    row = tl.program_id(0).to(tl.int64)
    offsets = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = offsets < size
    gate = widen(tl.load(gate_up_ptr + row * stride + offsets, mask=mask, other=0.0))
    up = widen(tl.load(gate_up_ptr + row * stride + size + offsets, mask=mask, other=0.0))
    out = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out_ptr + row * size + offsets, narrow(out, out_ptr.dtype.element_ty), mask=mask)
