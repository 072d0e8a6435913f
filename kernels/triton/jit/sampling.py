"""What sampling needs of a row of logits, in two passes over fixed parts of the vocabulary."""

import triton
import triton.language as tl

from kernels.triton.jit.numerics import widen

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def part_statistics(
    logits_ptr, best_ptr, index_ptr, sum_ptr, stride, vocab_size, COLUMNS: tl.constexpr
):
    """Largest logit of part ``program_id(1)`` of a row, where it first is, and its softmax sum.

    NaN counts as the largest.
    """
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    offsets = part * COLUMNS + tl.arange(0, COLUMNS)
    mask = offsets < vocab_size
    logits = widen(tl.load(logits_ptr + row * stride + offsets, mask=mask, other=0.0))
    logits = tl.where(logits == logits, logits, float("inf"))
    logits = tl.where(mask, logits, float("-inf"))
    best = tl.max(logits, axis=0)
    index = tl.min(tl.where((logits == best) & mask, offsets, vocab_size), axis=0)
    base = tl.where(best == float("-inf"), 0.0, best)
    place = row * tl.num_programs(1) + part
    tl.store(best_ptr + place, best)
    tl.store(index_ptr + place, index)
    tl.store(sum_ptr + place, tl.sum(tl.exp2((logits - base) * LOG2_E), axis=0))


@triton.jit
def fold_statistics(
    part_best_ptr,
    part_index_ptr,
    part_sum_ptr,
    best_ptr,
    index_ptr,
    log_sum_exp_ptr,
    num_parts,
    PARTS: tl.constexpr,
):
    """Fold the parts of row ``program_id(0)``; of equal logits the first one is best."""
    row = tl.program_id(0).to(tl.int64)
    parts = tl.arange(0, PARTS)
    mask = parts < num_parts
    places = row * num_parts + parts
    bests = tl.load(part_best_ptr + places, mask=mask, other=float("-inf"))
    sums = tl.load(part_sum_ptr + places, mask=mask, other=0.0)
    indices = tl.load(part_index_ptr + places, mask=mask, other=2147483647)
    best = tl.max(bests, axis=0)
    index = tl.min(tl.where(bests == best, indices, 2147483647), axis=0)
    base = tl.where(best == float("-inf"), 0.0, best)
    total = tl.sum(sums * tl.exp2((bests - base) * LOG2_E), axis=0)
    tl.store(best_ptr + row, best)
    tl.store(index_ptr + row, index.to(tl.int64))
    tl.store(log_sum_exp_ptr + row, tl.log2(total) * LN_2 + base)
