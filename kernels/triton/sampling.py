"""Greedy choice and softmax statistics of logits, for a vocabulary or a rank's part of it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.triton.attention import padded
from kernels.triton.checks import OperandChecks
from kernels.triton.jit import sampling as jit
from kernels.triton.linear import ceil_div

_PART = 4096


@dataclass(frozen=True, slots=True)
class VocabStatistics:
    """Of each row of logits.

    Attributes:
        best: ``[num_rows]`` float32, the largest logit; NaN counts as infinity.
        index: ``[num_rows]`` int64, where it first is.
        log_sum_exp: ``[num_rows]`` float32: a log-probability is a logit less this. Those of ranks
            add up by ``torch.logaddexp``.
    """

    best: Tensor
    index: Tensor
    log_sum_exp: Tensor


def vocab_statistics(logits: Tensor) -> VocabStatistics:
    """Statistics of ``[num_rows, vocab_size]`` logits, float32 or bfloat16, in two launches.

    A row's bits don't depend on other rows.

    Raises:
        ShapeError: Logits are no matrix with contiguous rows.
    """
    OperandChecks(logits.device).matrix("logits", logits)
    num_rows, vocab_size = logits.shape
    best = logits.new_empty(num_rows, dtype=torch.float32)
    index = logits.new_empty(num_rows, dtype=torch.int64)
    log_sum_exp = torch.empty_like(best)
    if num_rows == 0:
        return VocabStatistics(best, index, log_sum_exp)
    num_parts = ceil_div(vocab_size, _PART)
    part_best = logits.new_empty((num_rows, num_parts), dtype=torch.float32)
    part_sum = torch.empty_like(part_best)
    part_index = logits.new_empty((num_rows, num_parts), dtype=torch.int32)
    jit.part_statistics[(num_rows, num_parts)](
        logits,
        part_best,
        part_index,
        part_sum,
        logits.stride(0),
        vocab_size,
        COLUMNS=_PART,
        num_warps=8,
        enable_fp_fusion=False,
    )
    jit.fold_statistics[(num_rows,)](
        part_best,
        part_index,
        part_sum,
        best,
        index,
        log_sum_exp,
        num_parts,
        PARTS=padded(num_parts, least=1),
        num_warps=1,
        enable_fp_fusion=False,
    )
    return VocabStatistics(best, index, log_sum_exp)
