"""Reading rows of scores by the C++ extension; the checks here keep it inside its tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.cpu import _kernels, _scores
from kernels.cpu.checks import check_matrix
from kernels.layouts import describe
from kernels.ops import ShapeError
from kernels.scores import Draw


class CpuScores:
    """ScoreReader for tensors on the host; no row is sorted as a whole.

    Args:
        num_threads: Threads of a call, the caller's included; few scores are read by one.
        isa: The build to use, by default the best that the processor runs.
    """

    def __init__(self, num_threads: int, isa: str | None = None) -> None:
        self._scores = _scores.Scores(isa or _kernels.supported_isas()[0], num_threads)

    def argmax(self, scores: Tensor) -> list[int]:
        """See ScoreReader."""
        is_bf16 = check_matrix("scores", scores)
        return self._scores.argmax(is_bf16, *_place(scores))

    def top(
        self, scores: Tensor, rows: Sequence[int], counts: Sequence[int]
    ) -> list[tuple[Tensor, Tensor]]:
        """See ScoreReader."""
        total = sum(counts)
        tokens, values = torch.empty(total, dtype=torch.int64), torch.empty(total)
        place = _float_place(scores)
        self._scores.top(*place, rows, counts, tokens.data_ptr(), values.data_ptr())
        sizes = list(counts)
        return list(zip(torch.split(tokens, sizes), torch.split(values, sizes), strict=True))

    def log_sum_exp(self, scores: Tensor, rows: Sequence[int]) -> Tensor:
        """See ScoreReader."""
        return torch.tensor(self._scores.log_sum_exp(*_float_place(scores), rows))

    def num_above(self, scores: Tensor, rows: Sequence[int], bounds: Sequence[float]) -> list[int]:
        """See ScoreReader."""
        return self._scores.num_above(*_float_place(scores), rows, bounds)

    def draw(self, scores: Tensor, draws: Sequence[Draw]) -> list[tuple[int, ...]]:
        """See ScoreReader."""
        drawn = self._scores.draw(
            *_float_place(scores),
            [(d.row, d.temperature, d.top_k, d.top_p, d.min_p, d.uniforms) for d in draws],
        )
        return [tuple(tokens) for tokens in drawn]


def _float_place(scores: Tensor) -> tuple[int, int, int, int]:
    if check_matrix("scores", scores):
        raise ShapeError(f"scores are {describe(scores)}; float32 is needed")
    return _place(scores)


def _place(scores: Tensor) -> tuple[int, int, int, int]:
    return scores.data_ptr(), scores.shape[0], scores.shape[1], scores.stride(0)
