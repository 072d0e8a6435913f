"""What requests change in scores before a token is chosen: penalties, biases, a minimum length."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fabric.core.sampling import SamplingParams

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]

_NO_TOKENS = np.empty(0, dtype=np.int64)


class TokenHistory:
    """The distinct tokens of one sequence, and what each loses for being in its output.

    It follows from the tokens alone, so whoever makes it anew finds the same.
    """

    def __init__(self, prompt_tokens: IntArray, presence: float, frequency: float) -> None:
        """Begin with a prompt and no output.

        Args:
            prompt_tokens: The prompt.
            presence: What a token loses once it is in the output.
            frequency: What it loses for each time that it is there.
        """
        self._presence = presence
        self._frequency = frequency
        self._tokens = np.unique(prompt_tokens)
        self._penalties = np.zeros(len(self._tokens), dtype=np.float32)
        self._counts = [0] * len(self._tokens)
        self._places = {token: i for i, token in enumerate(self._tokens.tolist())}
        self._num_followed = 0

    @property
    def tokens(self) -> IntArray:
        """The distinct tokens, each once."""
        return self._tokens[: len(self._counts)]

    @property
    def penalties(self) -> FloatArray:
        """What each of ``tokens`` loses."""
        return self._penalties[: len(self._counts)]

    def follow(self, output_tokens: IntArray) -> None:
        """Take in what the output has more than at the last call."""
        for token in output_tokens[self._num_followed :].tolist():
            place = self._places.get(token)
            if place is None:
                place = self._append(token)
            self._counts[place] += 1
            self._penalties[place] = self._presence + self._frequency * self._counts[place]
        self._num_followed = len(output_tokens)

    def _append(self, token: int) -> int:
        place = self._places[token] = len(self._counts)
        if place == len(self._tokens):
            self._tokens = np.pad(self._tokens, (0, 64))
            self._penalties = np.pad(self._penalties, (0, 64))
        self._tokens[place] = token
        self._counts.append(0)
        return place


class Adjustment:
    """One sequence's changes to its scores; ``ends`` are the tokens that end it."""

    def __init__(
        self, sampling: SamplingParams, prompt_tokens: IntArray, eos_token_ids: Iterable[int]
    ) -> None:
        self.sampling = sampling
        self.history: TokenHistory | None = None
        if has_penalties(sampling):
            presence, frequency = sampling.presence_penalty, sampling.frequency_penalty
            self.history = TokenHistory(prompt_tokens, presence, frequency)
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

    def values(self, values: FloatArray, scores: Tensor) -> Tensor:
        own = values if self.kept is None else values[self.kept]
        return torch.from_numpy(own).to(scores.device)


def _penalise(scores: Tensor, rows: Sequence[AdjustedRow], own: range) -> None:
    histories = []
    for row in rows:
        assert row.adjustment.history is not None
        row.adjustment.history.follow(row.output_tokens)
        histories.append(row.adjustment.history)
    cells = _Cells.of(rows, [history.tokens for history in histories], own)
    factors = [row.adjustment.sampling.repetition_penalty for row in rows]
    repetition = np.repeat(
        np.array(factors, dtype=np.float32), [len(history.tokens) for history in histories]
    )
    penalties = np.concatenate([history.penalties for history in histories])
    at, factor = cells.at(scores), cells.values(repetition, scores)
    values = scores[at]
    values = torch.where(values > 0, values / factor, values * factor)
    scores[at] = values - cells.values(penalties, scores)
