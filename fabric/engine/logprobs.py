"""Log-probabilities of chosen tokens and of each row's likeliest ones."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fabric.core.request import PositionLogprobs, TokenLogprob
from fabric.engine.vocab_parallel import TopTokens, VocabShard


@dataclass(frozen=True, slots=True)
class LogprobsRow:
    """A row of this rank's logits, the tokens to describe, and how many likeliest to list."""

    logits: Tensor
    token_ids: tuple[int, ...]
    num_top: int


def position_logprobs(
    vocab: VocabShard, rows: Sequence[LogprobsRow]
) -> list[tuple[PositionLogprobs, ...]]:
    """Describe each row's tokens; overwrites the rows."""
    if not rows:
        return []
    logprobs = [row.logits for row in rows]
    vocab.log_softmax(logprobs)
    tops = vocab.top(logprobs, [row.num_top for row in rows])
    owners = [part for part, row in zip(logprobs, rows, strict=True) for _ in row.token_ids]
    tokens = [token for row in rows for token in row.token_ids]
    values = vocab.scores_of(owners, tokens)
    ranks = vocab.num_above(owners, values) + 1
    chosen = map(TokenLogprob, tokens, values.tolist(), ranks.tolist())
    return [
        tuple(PositionLogprobs(next(chosen), likeliest) for _ in row.token_ids)
        for row, likeliest in zip(rows, map(_listed, tops), strict=True)
    ]


def _listed(top: TopTokens) -> tuple[TokenLogprob, ...]:
    pairs = zip(top.token_ids.tolist(), top.scores.tolist(), strict=True)
    return tuple(TokenLogprob(token, value, i) for i, (token, value) in enumerate(pairs, start=1))
