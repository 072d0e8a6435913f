"""What requests change in scores before a token is chosen: penalties, biases, a minimum length."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fabric.core.sampling import SamplingParams

IntArray = NDArray[np.int64]

_NO_TOKENS = np.empty(0, dtype=np.int64)


class TokenHistory:
    """The distinct tokens of one sequence, and how often each is in its output.

    It follows from the tokens alone, so whoever makes it anew finds the same.
    """

    def __init__(self, prompt_tokens: IntArray) -> None:
        """Begin with a prompt and no output."""
        self._tokens = np.unique(prompt_tokens)
        self._counts = np.zeros(len(self._tokens), dtype=np.int64)
        self._num_tokens = len(self._tokens)
        self._places = {token: i for i, token in enumerate(self._tokens.tolist())}
        self._num_followed = 0

    @property
    def tokens(self) -> IntArray:
        """The distinct tokens, each once."""
        return self._tokens[: self._num_tokens]

    @property
    def counts(self) -> IntArray:
        """How often the output has each of ``tokens``."""
        return self._counts[: self._num_tokens]

    def follow(self, output_tokens: IntArray) -> None:
        """Take in what the output has more than at the last call."""
        for token in output_tokens[self._num_followed :].tolist():
            place = self._places.get(token)
            if place is None:
                place = self._append(token)
            self._counts[place] += 1
        self._num_followed = len(output_tokens)

    def _append(self, token: int) -> int:
        place = self._places[token] = self._num_tokens
        if place == len(self._tokens):
            room = np.zeros(place + 64, dtype=np.int64)
            self._tokens = np.concatenate([self._tokens, room])
            self._counts = np.concatenate([self._counts, room])
        self._tokens[place] = token
        self._num_tokens += 1
        return place


class Adjustment:
    """One sequence's changes to its scores; ``ends`` are the tokens that end it."""

    def __init__(
        self, sampling: SamplingParams, prompt_tokens: IntArray, eos_token_ids: Iterable[int]
    ) -> None:
        self.sampling = sampling
        self.history = TokenHistory(prompt_tokens) if has_penalties(sampling) else None
        self.biased = np.array([token for token, _ in sampling.logit_bias], dtype=np.int64)
        self.biases = np.array([bias for _, bias in sampling.logit_bias], dtype=np.float32)
        self.ends = _NO_TOKENS
        if sampling.min_tokens:
            self.ends = np.array([*eos_token_ids, *sampling.stop_token_ids], dtype=np.int64)


@dataclass(frozen=True, slots=True)
class AdjustedRow:
    """A row of scores to change, and the output of its sequence so far."""

    row: int
    adjustment: Adjustment
    output_tokens: IntArray


def has_penalties(sampling: SamplingParams) -> bool:
    """Whether tokens that a sequence has are made less or more likely."""
    return bool(
        sampling.repetition_penalty != 1.0
        or sampling.presence_penalty
        or sampling.frequency_penalty
    )


def is_adjusted(sampling: SamplingParams, num_output_tokens: int) -> bool:
    """Whether a sequence's next scores are changed at all."""
    return bool(
        sampling.logit_bias or num_output_tokens < sampling.min_tokens or has_penalties(sampling)
    )


def adjust(scores: Tensor, rows: Sequence[AdjustedRow], own: range) -> None:
    """Change rows in place: penalties, then biases, then the tokens that may not come yet.

    Args:
        scores: ``[num_rows, len(own)]`` float32, the scores of the tokens ``own``.
        rows: Which rows, and how.
        own: This rank's tokens.
    """
    penalised = [row for row in rows if row.adjustment.history is not None]
    if penalised:
        _penalise(scores, penalised, own)
    biased = [row for row in rows if len(row.adjustment.biased)]
    if biased:
        cells = _Cells.of(biased, [row.adjustment.biased for row in biased], own)
        biases = np.concatenate([row.adjustment.biases for row in biased])
        scores.index_put_(cells.at(scores), cells.values(biases, scores), accumulate=True)
    early = [row for row in rows if len(row.output_tokens) < row.adjustment.sampling.min_tokens]
    if early:
        cells = _Cells.of(early, [row.adjustment.ends for row in early], own)
        scores[cells.at(scores)] = -torch.inf


@dataclass(frozen=True, slots=True)
class _Cells:
    """Some tokens of some rows, of which ``kept`` are this rank's (None: all)."""

    rows: IntArray
    places: IntArray
    kept: NDArray[np.bool_] | None

    @classmethod
    def of(cls, rows: Sequence[AdjustedRow], tokens: Sequence[IntArray], own: range) -> "_Cells":
        numbers = np.repeat([row.row for row in rows], [len(each) for each in tokens])
        places = np.concatenate(tokens) - own.start
        kept = (places >= 0) & (places < len(own))
        if kept.all():
            return cls(numbers, places, None)
        return cls(numbers[kept], places[kept], kept)

    def at(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        rows, places = torch.from_numpy(self.rows), torch.from_numpy(self.places)
        return rows.to(scores.device), places.to(scores.device)

    def values(self, values: NDArray[np.float32], scores: Tensor) -> Tensor:
        own = values if self.kept is None else values[self.kept]
        return torch.from_numpy(own).to(scores.device)


def _penalise(scores: Tensor, rows: Sequence[AdjustedRow], own: range) -> None:
    histories = []
    for row in rows:
        assert row.adjustment.history is not None
        row.adjustment.history.follow(row.output_tokens)
        histories.append(row.adjustment.history)
    cells = _Cells.of(rows, [history.tokens for history in histories], own)
    counts = np.concatenate([history.counts for history in histories])
    samplings = [row.adjustment.sampling for row in rows]
    sizes = [len(history.tokens) for history in histories]
    presence = np.repeat([s.presence_penalty for s in samplings], sizes)
    frequency = np.repeat([s.frequency_penalty for s in samplings], sizes)
    repetition = np.repeat(
        np.array([s.repetition_penalty for s in samplings], dtype=np.float32), sizes
    )
    penalties = (presence * (counts > 0) + frequency * counts).astype(np.float32)
    at, factor = cells.at(scores), cells.values(repetition, scores)
    values = scores[at]
    values = torch.where(values > 0, values / factor, values * factor)
    scores[at] = values - cells.values(penalties, scores)
