"""Random draws from rows of scores, cut by top-k, top-p and min-p, by the ranks that have them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fabric.engine.vocab_parallel import TopTokens, VocabShard
from kernels.scores import Draw, cut, search

# Few distributions need more than the first candidates to hold top-p of their mass.
NUM_CANDIDATES = 512
GROWTH = 8


def draw_tokens(vocab: VocabShard, scores: Tensor, draws: Sequence[Draw]) -> list[tuple[int, ...]]:
    """Draw by inverse-transform sampling; a row's tokens don't depend on the other rows.

    Args:
        vocab: This rank's part of the vocabulary.
        scores: ``[num_rows, local_vocab_size]`` float32.
        draws: What to draw from which rows.
    """
    if vocab.group.size == 1:
        return vocab.reader.draw(scores, draws)
    rows = torch.tensor([draw.row for draw in draws], device=scores.device)
    divisors = scores.new_tensor([draw.temperature for draw in draws])
    scaled = scores.index_select(0, rows) / divisors[:, None]
    whole = [i for i, draw in enumerate(draws) if draw.is_whole(vocab.vocab_size)]
    drawn = dict(zip(whole, vocab.draw(scaled, whole, [draws[i] for i in whole]), strict=True))
    drawn |= _draw_cut(vocab, scaled, {i: d for i, d in enumerate(draws) if i not in drawn})
    return [drawn[i] for i in range(len(draws))]


def _draw_cut(
    vocab: VocabShard, scaled: Tensor, draws: dict[int, Draw]
) -> dict[int, tuple[int, ...]]:
    """Draw among each row's candidates; ask for more where these don't hold what is kept."""
    totals = _log_totals(vocab, scaled, draws)
    tokens: dict[int, tuple[int, ...]] = {}
    pending, num_candidates = list(draws), NUM_CANDIDATES
    while pending:
        counts = [
            min(num_candidates, vocab.vocab_size) if i in totals else draws[i].top_k
            for i in pending
        ]
        for i, top in zip(pending, vocab.top(scaled, pending, counts), strict=True):
            # top-p is a share of what top-k left; without top-k, of the whole distribution.
            total = totals[i] if i in totals else torch.logsumexp(top.scores, dim=-1)
            probabilities = torch.exp(top.scores - total)
            kept = _num_kept(probabilities, draws[i])
            is_enough = i not in totals or kept < len(top.scores) or kept == vocab.vocab_size
            if is_enough:
                tokens[i] = _draw_among(top, probabilities[:kept], draws[i])
        pending = [i for i in pending if i not in tokens]
        num_candidates *= GROWTH
    return tokens


def _log_totals(vocab: VocabShard, scaled: Tensor, draws: dict[int, Draw]) -> dict[int, float]:
    """The log-sum-exp of the whole row, for each row without top-k."""
    rows = [i for i, draw in draws.items() if not draw.has_top_k(vocab.vocab_size)]
    if not rows:
        return {}
    return dict(zip(rows, vocab.log_totals(scaled, rows), strict=True))


def _num_kept(probabilities: Tensor, draw: Draw) -> int:
    """How many of the tokens, likeliest first, top-p and min-p keep."""
    top_p = torch.tensor([draw.top_p], dtype=torch.float64, device=probabilities.device)
    return int(cut(probabilities, top_p, probabilities.new_tensor([draw.min_p])).sum())


def _draw_among(top: TopTokens, probabilities: Tensor, draw: Draw) -> tuple[int, ...]:
    uniforms = torch.tensor(draw.uniforms, dtype=torch.float64, device=probabilities.device)
    return tuple(top.token_ids[search(probabilities, uniforms)].tolist())
