"""Log-probabilities of chosen tokens and of each row's likeliest ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from fabric.core.request import PositionLogprobs, TokenLogprob
from fabric.engine.vocab_parallel import VocabShard


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
    values = vocab.scores_of(logits, [numbers[i] for i in owners], tokens)
    above = vocab.num_above(logits, [numbers[i] for i in owners], values)
    chosen_values = (values - _spread(totals, owners)).tolist()
    chosen = map(TokenLogprob, tokens, chosen_values, [count + 1 for count in above])
    listed_of = [i for i, row in enumerate(rows) for _ in range(row.num_top)]
    scores = torch.cat([top.scores for top in tops]) - _spread(totals, listed_of)
    names = torch.cat([top.token_ids for top in tops]).tolist()
    ranks = [rank for row in rows for rank in range(1, row.num_top + 1)]
    listed = map(TokenLogprob, names, scores.tolist(), ranks)
    described = []
    for row in rows:
        likeliest = tuple(islice(listed, row.num_top))
        described.append(tuple(PositionLogprobs(next(chosen), likeliest) for _ in row.token_ids))
    return described


def _spread(totals: Tensor, owners: Sequence[int]) -> Tensor:
    return totals[torch.tensor(owners, dtype=torch.int64, device=totals.device)]
