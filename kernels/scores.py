"""Reading rows of scores: the likeliest tokens, sums and draws.

Tokens rank by score, equal ones by number, so that what is chosen from a row depends on nothing
but the row. A row is one of ``scores[num_rows, vocab_size]``.
"""

import importlib
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Draw:
    """Tokens to draw from one row: how the row is cut, and a number in [0, 1) for each of them.

    Scores are divided by ``temperature``. Kept are the ``top_k`` likeliest tokens (0: all), of
    these the first that together have ``top_p`` of the mass, and of these again those that are at
    least ``min_p`` times as likely as the first.
    """

    row: int
    uniforms: tuple[float, ...]
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def is_whole(self, vocab_size: int) -> bool:
        """Whether no token is cut off."""
        return self.top_p >= 1.0 and self.min_p <= 0.0 and not self.has_top_k(vocab_size)

    def has_top_k(self, vocab_size: int) -> bool:
        """Whether ``top_k`` cuts tokens off."""
        return 0 < self.top_k < vocab_size


class ScoreReader(Protocol):
    """Reads rows of scores; no row's result depends on the others."""

    def argmax(self, scores: Tensor) -> list[int]:
        """The likeliest token of each row; scores may be bfloat16."""
        ...

    def top(
        self, scores: Tensor, rows: Sequence[int], counts: Sequence[int]
    ) -> list[tuple[Tensor, Tensor]]:
        """The ``counts[i]`` likeliest tokens of ``rows[i]``, int64, and their scores."""
        ...

    def log_sum_exp(self, scores: Tensor, rows: Sequence[int]) -> Tensor:
        """``[len(rows)]``, the logarithm of the sum of the exponentials of each row's scores."""
        ...

    def num_above(self, scores: Tensor, rows: Sequence[int], bounds: Sequence[float]) -> list[int]:
        """How many tokens of ``rows[i]`` score higher than ``bounds[i]``."""
        ...

    def draw(self, scores: Tensor, draws: Sequence[Draw]) -> list[tuple[int, ...]]:
        """Draw tokens by inverse-transform sampling.

        A number picks the token with which the tokens' mass exceeds that share of all that is
        kept, taken by rank, or by number where no token is cut off.
        """
        ...


class TorchScores:
    """The operations by torch on any device, all rows at once; what they mean."""

    def argmax(self, scores: Tensor) -> list[int]:
        """See ScoreReader."""
        tokens: list[int] = torch.argmax(scores, dim=-1).tolist()
        return tokens

    def top(
        self, scores: Tensor, rows: Sequence[int], counts: Sequence[int]
    ) -> list[tuple[Tensor, Tensor]]:
        """See ScoreReader."""
        return [_ranked(scores[row], count) for row, count in zip(rows, counts, strict=True)]

    def log_sum_exp(self, scores: Tensor, rows: Sequence[int]) -> Tensor:
        """See ScoreReader."""
        return torch.logsumexp(_pick(scores, rows), dim=-1)

    def num_above(self, scores: Tensor, rows: Sequence[int], bounds: Sequence[float]) -> list[int]:
        """See ScoreReader."""
        limits = scores.new_tensor(bounds)
        counts: list[int] = (_pick(scores, rows) > limits[:, None]).sum(dim=1).tolist()
        return counts

    def draw(self, scores: Tensor, draws: Sequence[Draw]) -> list[tuple[int, ...]]:
        """See ScoreReader."""
        vocab_size = scores.shape[1]
        drawn: dict[int, tuple[int, ...]] = {}
        for is_whole, draw in ((True, _draw_whole), (False, _draw_cut)):
            chosen = [d for d in draws if d.is_whole(vocab_size) is is_whole]
            if chosen:
                scaled = _pick(scores, [d.row for d in chosen])
                scaled = scaled / scores.new_tensor([d.temperature for d in chosen])[:, None]
                tokens = draw(scaled, chosen).tolist()
                for d, row in zip(chosen, tokens, strict=True):
                    drawn[id(d)] = tuple(row[: len(d.uniforms)])
        return [drawn[id(d)] for d in draws]


def select_scores(
    device: str, backend: str | None = None, num_threads: int | None = None
) -> ScoreReader:
    """The reader for scores on a device, for models that a backend of this name runs.

    Args:
        device: Device type.
        backend: Name of the backend; None: the device's best.
        num_threads: Threads of a call on the CPU; by default, the processors that this process
            may use.
    """
    is_built = importlib.util.find_spec("kernels.cpu._scores") is not None
    if device != "cpu" or backend not in (None, "cpp") or not is_built:
        return TorchScores()
    # Not imported above: the extension may be missing.
    module = importlib.import_module("kernels.cpu.scores")
    reader: ScoreReader = module.CpuScores(num_threads or len(os.sched_getaffinity(0)))
    return reader


def search(masses: Tensor, uniforms: Tensor) -> Tensor:
    """Inverse-transform sampling: the place in each row of each number in [0, 1).

    Args:
        masses: ``[..., num_tokens]``, not necessarily normalised.
        uniforms: ``[..., num_draws]`` float64.
    """
    ends = torch.cumsum(masses, dim=-1, dtype=torch.float64)
    places = torch.searchsorted(ends, uniforms * ends[..., -1:], right=True)
    return places.clamp_(max=masses.shape[-1] - 1)


def cut(probabilities: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """Which tokens top-p and min-p keep of rows sorted by rank; the first one always.

    Args:
        probabilities: ``[..., num_tokens]``.
        top_p: ``[..., 1]`` float64.
        min_p: ``[..., 1]``.
    """
    before = torch.cumsum(probabilities, dim=-1, dtype=torch.float64) - probabilities
    keep = before < top_p
    keep &= probabilities >= min_p * probabilities[..., :1]
    keep[..., 0] = True
    return keep


def _draw_whole(scaled: Tensor, draws: Sequence[Draw]) -> Tensor:
    return search(scaled.softmax(dim=-1), _uniforms(draws, scaled))


def _draw_cut(scaled: Tensor, draws: Sequence[Draw]) -> Tensor:
    vocab_size = scaled.shape[1]
    scaled, tokens = torch.sort(scaled, dim=-1, descending=True, stable=True)
    counts = [d.top_k if d.has_top_k(vocab_size) else vocab_size for d in draws]
    ranks = torch.arange(vocab_size, device=scaled.device)
    beyond = ranks >= torch.tensor(counts, device=scaled.device)[:, None]
    probabilities = scaled.masked_fill_(beyond, -torch.inf).softmax(dim=-1)
    top_p = torch.tensor([d.top_p for d in draws], dtype=torch.float64, device=scaled.device)
    keep = cut(probabilities, top_p[:, None], scaled.new_tensor([d.min_p for d in draws])[:, None])
    places = search(probabilities.mul_(keep), _uniforms(draws, scaled))
    return tokens.gather(1, places)


def _uniforms(draws: Sequence[Draw], like: Tensor) -> Tensor:
    """The draws' numbers, ``[num_draws, most tokens of a draw]`` float64, padded with 0."""
    width = max(len(d.uniforms) for d in draws)
    rows = [[*d.uniforms, *[0.0] * (width - len(d.uniforms))] for d in draws]
    return torch.tensor(rows, dtype=torch.float64, device=like.device)


def _pick(scores: Tensor, rows: Sequence[int]) -> Tensor:
    if len(rows) == len(scores) and all(i == row for i, row in enumerate(rows)):
        return scores
    return scores.index_select(0, torch.tensor(rows, dtype=torch.int64, device=scores.device))


def _ranked(row: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """A row's first tokens by rank; sorts no more than have a chance."""
    if count == 0:
        return row.new_empty(0, dtype=torch.int64), row.new_empty(0)
    least = torch.topk(row, count).values[-1]
    places = (row >= least).nonzero().flatten()
    values, order = torch.sort(row[places], descending=True, stable=True)
    return places[order[:count]], values[:count]
