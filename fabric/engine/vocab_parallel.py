"""Reads scores of which each rank has a part of the vocabulary, and never gathers whole rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fabric.engine.sequence_table import IntArray
from fabric.parallel.group import Group, SoloGroup

# The largest number below 1.
_BELOW_ONE = 1.0 - 2.0**-53


@dataclass(frozen=True, slots=True)
class TopTokens:
    """Some of a row's tokens ``[count]`` int64 and their scores, likeliest first."""

    token_ids: Tensor
    scores: Tensor


@dataclass(frozen=True, slots=True)
class VocabShard:
    """This rank's tokens, and the ranks that have the others, in the order of the ids.

    All ranks make the same calls about the same rows, and all get the same results. A row is
    ``[len(token_ids)]`` float32: the scores of this rank's tokens.
    """

    group: Group
    token_ids: range
    vocab_size: int

    @classmethod
    def whole(cls, vocab_size: int) -> "VocabShard":
        """The shard of a rank that has all tokens."""
        return cls(SoloGroup(), range(vocab_size), vocab_size)

    def places(self, token_ids: IntArray) -> IntArray:
        """Where in a row those of some tokens are that are this rank's."""
        first, end = self.token_ids.start, self.token_ids.stop
        return token_ids[(token_ids >= first) & (token_ids < end)] - first

    def argmax(self, rows: Tensor) -> Tensor:
        """The likeliest token of each row ``[num_rows, local_vocab_size]``, the lowest of equals.

        Gathers 8 bytes a row and rank.
        """
        places = torch.argmax(rows, dim=-1)
        if self.group.size == 1:
            return places
        scores = rows.gather(1, places[:, None])
        packed = _pack(scores, places[:, None] + self.token_ids.start)
        every_score, every_token = _unpack(self._gather(packed))
        best = every_score.argmax(dim=0, keepdim=True)
        return every_token.gather(0, best).flatten()

    def top(
        self, rows: Sequence[Tensor], counts: Sequence[int], *, in_order: bool = False
    ) -> list[TopTokens]:
        """The ``counts[i]`` likeliest tokens of each row.

        Gathers 8 bytes a token and rank, of up to ``counts[i]`` tokens of each rank.

        Args:
            rows: The rows.
            counts: How many tokens of each; at most the vocabulary.
            in_order: Whether equal scores of a rank come by token id, which takes longer.
        """
        tops = [
            self._local_top(row, count, in_order) for row, count in zip(rows, counts, strict=True)
        ]
        if self.group.size == 1:
            return tops
        packed = torch.cat([_pack(top.scores, top.token_ids) for top in tops])
        sizes = [2 * len(top.scores) for top in tops]
        gathered = torch.split(self._gather(packed), sizes, dim=1)
        return [_merged(part, count) for part, count in zip(gathered, counts, strict=True)]

    def log_masses(self, rows: Sequence[Tensor]) -> Tensor:
        """Each rank's log-sum-exp of each row, ``[num_rows, num_ranks]``; gathers 4 bytes each."""
        masses = torch.stack([torch.logsumexp(row, dim=-1) for row in rows])
        return masses[:, None] if self.group.size == 1 else self._gather(masses).T

    def log_softmax(self, rows: Sequence[Tensor]) -> None:
        """Normalise rows in place, over all tokens; gathers 4 bytes a row and rank."""
        if self.group.size > 1:
            masses = self.log_masses(rows)
            shares = masses[:, self.group.rank] - torch.logsumexp(masses, dim=1)
        else:
            shares = torch.zeros(len(rows))
        for row, share in zip(rows, shares.tolist(), strict=True):
            row.copy_(row.log_softmax(dim=-1)).add_(share)

    def draw(self, rows: Sequence[Tensor], uniforms: Sequence[Tensor]) -> list[Tensor]:
        """Draw from whole rows: a rank by its mass, then one of its tokens.

        Gathers 4 bytes a row and rank, and sums 8 bytes a token.

        Args:
            rows: The rows.
            uniforms: For each row float64 numbers in [0, 1), one a token to draw.
        """
        if self.group.size == 1:
            return [search(row.softmax(dim=-1), u) for row, u in zip(rows, uniforms, strict=True)]
        masses = self.log_masses(rows).double()
        shares = torch.exp(masses - masses.max(dim=1, keepdim=True).values)
        drawn = [
            self._own_draws(row, share, u)
            for row, share, u in zip(rows, shares, uniforms, strict=True)
        ]
        tokens = torch.cat(drawn)
        self.group.all_reduce(tokens)
        return list(torch.split(tokens, [len(u) for u in uniforms]))

    def scores_of(self, rows: Sequence[Tensor], token_ids: Sequence[int]) -> Tensor:
        """The score of one token in each row; sums 4 bytes a row."""
        first = self.token_ids.start
        scores = torch.stack(
            [
                row[token - first] if token in self.token_ids else row.new_zeros(())
                for row, token in zip(rows, token_ids, strict=True)
            ]
        )
        return self._sum(scores)

    def num_above(self, rows: Sequence[Tensor], scores: Tensor) -> Tensor:
        """How many tokens of each row score higher than ``scores[i]``; sums 8 bytes a row."""
        counts = [(row > score).sum() for row, score in zip(rows, scores, strict=True)]
        return self._sum(torch.stack(counts))

    def _local_top(self, row: Tensor, count: int, in_order: bool) -> TopTokens:
        # Parts differ by a token; every rank offers as many as the largest part has.
        count = min(count, -(-self.vocab_size // self.group.size))
        if count > len(row):
            row = torch.nn.functional.pad(row, (0, 1), value=-torch.inf)
        if in_order:
            scores, places = torch.sort(row, descending=True, stable=True)
            scores, places = scores[:count], places[:count]
        else:
            scores, places = torch.topk(row, count)
        return TopTokens(places + self.token_ids.start, scores)

    def _own_draws(self, row: Tensor, shares: Tensor, uniforms: Tensor) -> Tensor:
        """The tokens that fall to this rank; zeros in place of the others."""
        ends = torch.cumsum(shares, dim=0)
        targets = uniforms * ends[-1]
        ranks = torch.searchsorted(ends, targets, right=True)
        starts = ends - shares
        rest = ((targets - starts[ranks]) / shares[ranks]).clamp_(0.0, _BELOW_ONE)
        tokens = search(row.softmax(dim=-1), rest) + self.token_ids.start
        return tokens.masked_fill_(ranks != self.group.rank, 0)

    def _gather(self, x: Tensor) -> Tensor:
        """Every rank's tensor, ``[num_ranks, *x.shape]``."""
        return self.group.all_gather(x).view(self.group.size, *x.shape)

    def _sum(self, x: Tensor) -> Tensor:
        if self.group.size > 1:
            self.group.all_reduce(x)
        return x


def search(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Inverse-transform sampling: the place in a distribution of each number in [0, 1).

    Args:
        probabilities: ``[num_tokens]``, not necessarily normalised.
        uniforms: ``[num_draws]`` float64.
    """
    ends = torch.cumsum(probabilities, dim=-1, dtype=torch.float64)
    places = torch.searchsorted(ends, uniforms * ends[-1], right=True)
    return places.clamp_(max=len(probabilities) - 1)


def _pack(scores: Tensor, token_ids: Tensor) -> Tensor:
    """Scores, then token ids, in one int32 tensor along the last dimension."""
    return torch.cat([scores.view(torch.int32), token_ids.int()], dim=-1)


def _unpack(packed: Tensor) -> tuple[Tensor, Tensor]:
    scores, token_ids = packed.chunk(2, dim=-1)
    return scores.view(torch.float32), token_ids.long()


def _merged(packed: Tensor, count: int) -> TopTokens:
    """The likeliest of what the ranks offer; of equal scores the lowest rank's come first."""
    scores, token_ids = _unpack(packed)
    ordered, places = torch.sort(scores.flatten(), descending=True, stable=True)
    return TopTokens(token_ids.flatten()[places[:count]], ordered[:count])
