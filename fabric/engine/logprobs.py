"""Log-probabilities of chosen tokens and of each row's likeliest ones."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fabric.core.request import PositionLogprobs, TokenLogprob
from fabric.engine.vocab_parallel import TopTokens, VocabShard


@dataclass(frozen=True, slots=True)
class LogprobsRow:
    """A row of this rank's logits, the tokens to describe, and how many likeliest to list."""

    row: int
    token_ids: tuple[int, ...]
    num_top: int


def position_logprobs(
    vocab: VocabShard, logits: Tensor, rows: Sequence[LogprobsRow]
) -> list[tuple[PositionLogprobs, ...]]:
    """Describe each row's tokens.

    Args:
        vocab: This rank's part of the vocabulary.
        logits: ``[num_rows, local_vocab_size]`` float32.
        rows: Which rows, and what of them.
    """
    numbers = [row.row for row in rows]
    totals = vocab.log_totals(logits, numbers)
    tops = vocab.top(logits, numbers, [row.num_top for row in rows])
    owners = [i for i, row in enumerate(rows) for _ in row.token_ids]
    tokens = [token for row in rows for token in row.token_ids]
    scores = vocab.scores_of(logits, [numbers[i] for i in owners], tokens)
    above = vocab.num_above(logits, [numbers[i] for i in owners], scores)
    chosen = [
        TokenLogprob(token, score - totals[i], num_above + 1)
        for i, token, score, num_above in zip(owners, tokens, scores, above, strict=True)
    ]
    described, first = [], 0
    for row, top, total in zip(rows, tops, totals, strict=True):
        end = first + len(row.token_ids)
        listed = _listed(top, total)
        described.append(tuple(PositionLogprobs(token, listed) for token in chosen[first:end]))
        first = end
    return described


def _listed(top: TopTokens, total: float) -> tuple[TokenLogprob, ...]:
    pairs = zip(top.token_ids.tolist(), top.scores.tolist(), strict=True)
    return tuple(TokenLogprob(token, score - total, i) for i, (token, score) in enumerate(pairs, 1))
