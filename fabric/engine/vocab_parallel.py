"""Reads scores of which each rank has a part of the vocabulary, and never gathers whole rows."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fabric.parallel.group import Group, SoloGroup
from kernels.scores import Draw, ScoreReader, TorchScores

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

    All ranks make the same calls about the same rows, and all get the same results. Rows are of
    ``scores[num_rows, len(token_ids)]`` float32: those of this rank's tokens, which ``reader``
    reads. Of equal scores the token with the lowest id comes first.
    """

    group: Group
    token_ids: range
    vocab_size: int
    reader: ScoreReader = field(default_factory=TorchScores)

    @classmethod
    def whole(cls, vocab_size: int) -> "VocabShard":
        """The shard of a rank that has all tokens."""
        return cls(SoloGroup(), range(vocab_size), vocab_size)

    def argmax(self, scores: Tensor) -> list[int]:
        """The likeliest token of each row; scores may be bfloat16.

        Gathers 8 bytes a row and rank.
        """
        places = self.reader.argmax(scores)
        if self.group.size == 1:
            return places
        own = torch.tensor(places, device=scores.device)[:, None]
        packed = _pack(scores.gather(1, own).float(), own + self._first)
        every_score, every_token = _unpack(self._gather(packed))
        best = every_score.argmax(dim=0, keepdim=True)
        tokens: list[int] = every_token.gather(0, best).flatten().tolist()
        return tokens

    def top(self, scores: Tensor, rows: Sequence[int], counts: Sequence[int]) -> list[TopTokens]:
        """The ``counts[i]`` likeliest tokens of ``rows[i]``; at most the vocabulary.

        Gathers 8 bytes a token and rank, of up to ``counts[i]`` tokens of each rank.
        """
        if self.group.size == 1:
            return [TopTokens(*top) for top in self.reader.top(scores, rows, counts)]
        # Parts differ by a token; every rank offers as many as the largest part has.
        largest, own = -(-self.vocab_size // self.group.size), len(self.token_ids)
        sizes = [min(count, largest) for count in counts]
        tops = self.reader.top(scores, rows, [min(size, own) for size in sizes])
        packed = torch.cat(
            [
                _pack(_padded(values, size, -torch.inf), _padded(places, size, own) + self._first)
                for (places, values), size in zip(tops, sizes, strict=True)
            ]
        )
        gathered = torch.split(self._gather(packed), [2 * size for size in sizes], dim=1)
        return [_merged(part, count) for part, count in zip(gathered, counts, strict=True)]

    def log_masses(self, scores: Tensor, rows: Sequence[int]) -> Tensor:
        """Each rank's log-sum-exp of each row, ``[len(rows), num_ranks]``; gathers 4 bytes each."""
        return self._gather(self.reader.log_sum_exp(scores, rows)).T

    def log_totals(self, scores: Tensor, rows: Sequence[int]) -> list[float]:
        """The log-sum-exp of each row over all ranks; gathers as much."""
        totals = self.reader.log_sum_exp(scores, rows)
        if self.group.size > 1:
            totals = torch.logsumexp(self._gather(totals), dim=0)
        values: list[float] = totals.tolist()
        return values

    def draw(
        self, scores: Tensor, rows: Sequence[int], draws: Sequence[Draw]
    ) -> list[tuple[int, ...]]:
        """Draw from whole rows: a rank by its mass, then one of its tokens.

        Gathers 4 bytes a row and rank, and sums 8 bytes a token.

        Args:
            scores: Divided by temperatures already.
            rows: The rows.
            draws: The numbers for each; their cuts don't matter.
        """
        if not rows:
            return []
        masses = self.log_masses(scores, rows).double()
        shares = torch.exp(masses - masses.max(dim=1, keepdim=True).values)
        sizes = [len(draw.uniforms) for draw in draws]
        counts = torch.tensor(sizes, device=scores.device)
        numbers = [number for draw in draws for number in draw.uniforms]
        uniforms = torch.tensor(numbers, dtype=torch.float64, device=scores.device)
        ranks, rest = _fall(shares.repeat_interleave(counts, dim=0), uniforms)
        own = [
            Draw(row, tuple(u.tolist()))
            for row, u in zip(rows, torch.split(rest, sizes), strict=True)
        ]
        drawn = [token for row in self.reader.draw(scores, own) for token in row]
        tokens = torch.tensor(drawn, device=scores.device) + self._first
        tokens.masked_fill_(ranks != self.group.rank, 0)
        self.group.all_reduce(tokens)
        return [tuple(part.tolist()) for part in torch.split(tokens, sizes)]

    def scores_of(
        self, scores: Tensor, rows: Sequence[int], token_ids: Sequence[int]
    ) -> list[float]:
        """The score of one token in each row; sums 4 bytes a row."""
        numbers = torch.tensor(rows, device=scores.device)
        places = torch.tensor(token_ids, device=scores.device)
        if self.group.size == 1:
            values = scores[numbers, places]
        else:
            places -= self._first
            is_own = (places >= 0) & (places < len(self.token_ids))
            values = scores[numbers, places * is_own].masked_fill_(~is_own, 0.0)
            self.group.all_reduce(values)
        found: list[float] = values.tolist()
        return found

    def num_above(self, scores: Tensor, rows: Sequence[int], bounds: Sequence[float]) -> list[int]:
        """How many tokens of each row score higher than ``bounds[i]``; sums 8 bytes a row."""
        counts = self.reader.num_above(scores, rows, bounds)
        if self.group.size == 1:
            return counts
        every = torch.tensor(counts, device=scores.device)
        self.group.all_reduce(every)
        total: list[int] = every.tolist()
        return total

    @property
    def _first(self) -> int:
        return self.token_ids.start

    def _gather(self, x: Tensor) -> Tensor:
        """Every rank's tensor, ``[num_ranks, *x.shape]``."""
        return self.group.all_gather(x).view(self.group.size, *x.shape)


def _fall(shares: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Which rank each number in [0, 1) falls to, and where within its share, in [0, 1).

    Args:
        shares: ``[num_draws, num_ranks]``, not normalised.
        uniforms: ``[num_draws]`` float64.
    """
    ends = torch.cumsum(shares, dim=1)
    targets = uniforms[:, None] * ends[:, -1:]
    ranks = torch.searchsorted(ends, targets, right=True)
    starts = (ends - shares).gather(1, ranks)
    rest = ((targets - starts) / shares.gather(1, ranks)).clamp_(0.0, _BELOW_ONE)
    return ranks.flatten(), rest.flatten()


def _padded(x: Tensor, size: int, value: float) -> Tensor:
    missing = size - len(x)
    return x if missing == 0 else torch.nn.functional.pad(x, (0, missing), value=value)


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
