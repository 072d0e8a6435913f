"""Layers cut over the ranks of a stage: Megatron's pairs of column and row parallel linears.

A column parallel layer takes the whole input and gives this rank's output features; the row
parallel layer after it takes those, and one all-reduce sums the ranks' outputs.

Source: Megatron-LM (Shoeybi et al., 2019), section 3.
"""

from torch import Tensor

from fabric.parallel.group import Group
from kernels.ops import Backend, PackedLinear


class ColumnParallelLinear:
    """Computes this rank's output features; layers with the same input may be stacked in one."""

    def __init__(self, backend: Backend, weight: PackedLinear, bias: Tensor | None = None) -> None:
        """Keep this rank's rows of the weight, ``[local_out_features, in_features]``.

        Args:
            backend: Has packed the weight, and computes.
            weight: See above.
            bias: ``[local_out_features]``; None: none.
        """
        self._backend = backend
        self._weight = weight
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        """``[num_tokens, in_features]`` to ``[num_tokens, local_out_features]``."""
        out = self._backend.linear(x, self._weight)
        return out if self._bias is None else out.add_(self._bias)


class RowParallelLinear:
    """Computes all output features from this rank's input features, and sums over the ranks."""

    def __init__(self, backend: Backend, group: Group, weight: PackedLinear) -> None:
        """Keep this rank's columns of the weight, ``[out_features, local_in_features]``."""
        self._backend = backend
        self._group = group
        self._weight = weight

    def __call__(self, x: Tensor) -> Tensor:
        """``[num_tokens, local_in_features]`` to ``[num_tokens, out_features]``, on all ranks."""
        out = self._backend.linear(x, self._weight)
        if self._group.size > 1:
            self._group.all_reduce(out)
        return out


class VocabParallelEmbedding:
    """Looks up tokens of which each rank has some."""

    def __init__(self, group: Group, vocabulary: range, weight: Tensor) -> None:
        """Keep this rank's rows, ``[len(vocabulary), hidden_size]``."""
        self._group = group
        self._vocabulary = vocabulary
        self._weight = weight

    def __call__(self, token_ids: Tensor) -> Tensor:
        """``[num_tokens]`` int64 to ``[num_tokens, hidden_size]``, on all ranks."""
        if self._group.size == 1:
            return self._weight.index_select(0, token_ids)
        rows = token_ids - self._vocabulary.start
        is_elsewhere = (rows < 0) | (rows >= len(self._vocabulary))
        out = self._weight.index_select(0, rows.masked_fill(is_elsewhere, 0))
        out.masked_fill_(is_elsewhere[:, None], 0.0)
        self._group.all_reduce(out)
        return out
