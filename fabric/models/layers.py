"""What is outside of decoder layers and cut over the ranks of a stage."""

from torch import Tensor

from fabric.parallel.group import Group


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
