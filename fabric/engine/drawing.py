"""Random draws from rows of scores, cut by top-k, top-p and min-p."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fabric.core.sampling import SamplingParams
from fabric.engine.vocab_parallel import TopTokens, VocabShard, search

# Few distributions need more than the first candidates to hold top-p of their mass.
NUM_CANDIDATES = 512
GROWTH = 8


@dataclass(frozen=True, slots=True)
class Draw:
    """A row of this rank's scores at its temperature, and a number in [0, 1) for each token."""

    scores: Tensor
    sampling: SamplingParams
    uniforms: Tensor


def draw_tokens(vocab: VocabShard, draws: Sequence[Draw]) -> list[tuple[int, ...]]:
    """Draw by inverse-transform sampling; a row's tokens don't depend on the other rows."""
    is_whole = [_is_whole(draw.sampling, vocab.vocab_size) for draw in draws]
    whole = iter(_draw_whole(vocab, [d for d, w in zip(draws, is_whole, strict=True) if w]))
    cut = iter(_draw_cut(vocab, [d for d, w in zip(draws, is_whole, strict=True) if not w]))
    return [next(whole if w else cut) for w in is_whole]


def _is_whole(sampling: SamplingParams, vocab_size: int) -> bool:
    keeps_all = sampling.top_p >= 1.0 and sampling.min_p <= 0.0
    return keeps_all and not _has_top_k(sampling, vocab_size)


def _has_top_k(sampling: SamplingParams, vocab_size: int) -> bool:
    return 0 < sampling.top_k < vocab_size


def _draw_whole(vocab: VocabShard, draws: Sequence[Draw]) -> list[tuple[int, ...]]:
    if not draws:
        return []
    tokens = vocab.draw([draw.scores for draw in draws], [draw.uniforms for draw in draws])
    return [tuple(each.tolist()) for each in tokens]


def _draw_cut(vocab: VocabShard, draws: Sequence[Draw]) -> list[tuple[int, ...]]:
    """Draw among each row's candidates; ask for more where these don't hold what is kept."""
    totals = _log_totals(vocab, draws)
    tokens: dict[int, tuple[int, ...]] = {}
    pending, num_candidates = list(range(len(draws))), NUM_CANDIDATES
    # A rank that is alone has nothing to gather: it may as well look at all.
    growth = GROWTH if vocab.group.size > 1 else vocab.vocab_size
    while pending:
        counts = [
            min(num_candidates, vocab.vocab_size) if i in totals else draws[i].sampling.top_k
            for i in pending
        ]
        rows = [draws[i].scores for i in pending]
        tops = vocab.top(rows, counts, in_order=num_candidates > NUM_CANDIDATES)
        for i, top in zip(pending, tops, strict=True):
            # top-p is a share of what top-k left; without top-k, of the whole distribution.
            total = totals.get(i, torch.logsumexp(top.scores, dim=-1))
            kept = _num_kept(torch.exp(top.scores - total), draws[i].sampling)
            is_enough = i not in totals or kept < len(top.scores) or kept == vocab.vocab_size
            if is_enough:
                tokens[i] = _draw_among(top, kept, total, draws[i].uniforms)
        pending = [i for i in pending if i not in tokens]
        num_candidates *= growth
    return [tokens[i] for i in range(len(draws))]


def _log_totals(vocab: VocabShard, draws: Sequence[Draw]) -> dict[int, Tensor]:
    """The log-sum-exp of the whole row, for each row without top-k."""
    rows = [i for i, d in enumerate(draws) if not _has_top_k(d.sampling, vocab.vocab_size)]
    if not rows:
        return {}
    masses = vocab.log_masses([draws[i].scores for i in rows])
    return dict(zip(rows, torch.logsumexp(masses, dim=1), strict=True))


def _num_kept(probabilities: Tensor, sampling: SamplingParams) -> int:
    """How many of the tokens, most likely first, top-p and min-p keep; at least one."""
    before = torch.cumsum(probabilities, dim=-1, dtype=torch.float64) - probabilities
    keep = before < sampling.top_p
    keep &= probabilities >= sampling.min_p * probabilities[0]
    return max(1, int(keep.sum()))


def _draw_among(top: TopTokens, num_kept: int, total: Tensor, uniforms: Tensor) -> tuple[int, ...]:
    probabilities = torch.exp(top.scores[:num_kept] - total)
    return tuple(top.token_ids[search(probabilities, uniforms)].tolist())
