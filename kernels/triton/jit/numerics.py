"""Arithmetic that means the same in every kernel, on a GPU and under Triton's interpreter.

Kernels are compiled without contraction of multiplies and adds (``enable_fp_fusion=False``): where
one is wanted, ``tl.fma`` says so. A row's rounding can then not depend on which kernel computes it.

The interpreter holds bfloat16 as bits: it adds the bits, and cuts off where a GPU rounds. Here
bfloat16 is therefore only loaded, widened, narrowed and stored.
"""

import triton
import triton.language as tl

INTERPRET = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def widen(x):
    """To float32, exactly."""
    if INTERPRET and x.dtype == tl.bfloat16:
        bits = x.to(tl.uint16, bitcast=True).to(tl.uint32)
        return (bits << 16).to(tl.float32, bitcast=True)
    return x.to(tl.float32)


@triton.jit
def narrow(x, dtype: tl.constexpr):
    """From float32 to ``dtype``, to the nearest, ties to even."""
    if INTERPRET and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        is_number = x == x
        rounded = tl.where(is_number, rounded, 0x7FC0)
        return rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return x.to(dtype)


@triton.jit
def as_operand(integers, dtype: tl.constexpr):
    """8-bit integers as an operand of :func:`dot` beside one of ``dtype``; exact."""
    if INTERPRET:
        return integers.to(tl.float32)
    return integers.to(dtype)


@triton.jit
def dot(a, b, total):
    """``total + a @ b`` in float32; float32 operands are not cut to tf32."""
    if INTERPRET:
        return tl.dot(widen(a), widen(b), total, input_precision="ieee")
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def find_sequence(starts_ptr, num_seqs, target, SCALE: tl.constexpr, TILE: tl.constexpr):
    """The last sequence i whose first tile, ``starts[i] * SCALE // TILE + i``, is <= ``target``.

    With ``TILE`` 0: whose first row, ``starts[i] * SCALE``, is.
    """
    low = 0
    high = num_seqs
    while high - low > 1:
        middle = (low + high) // 2
        first = tl.load(starts_ptr + middle) * SCALE
        if TILE > 0:
            first = first // TILE + middle
        if first <= target:
            low = middle
        else:
            high = middle
    return low
