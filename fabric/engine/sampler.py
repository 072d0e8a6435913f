"""Chooses tokens from logits; each row's choice depends on that row and its request alone."""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fabric.core.request import PositionLogprobs
from fabric.engine.drawing import Draw, draw_tokens
from fabric.engine.logprobs import LogprobsRow, position_logprobs
from fabric.engine.sequence_table import IntArray, SequenceRow
from fabric.engine.vocab_parallel import VocabShard


@dataclass(frozen=True, slots=True)
class SampleRow:
    """One row of logits to sample from: whose it is, its tokens so far, and how many to draw."""

    sequence: SequenceRow
    prompt_tokens: IntArray
    output_tokens: IntArray
    num_samples: int


@dataclass(frozen=True, slots=True)
class Choice:
    """The tokens drawn from one row, and their log-probabilities if asked for."""

    token_ids: tuple[int, ...]
    logprobs: tuple[PositionLogprobs, ...] = ()


class Sampler:
    """Draws tokens as SamplingParams say.

    Random numbers are a function of (seed, sequence index, position), so that the same request
    gives the same tokens in any batch, and after recomputation. All ranks that have a part of
    the logits draw together, and draw the same.
    """

    def __init__(self, eos_token_ids: frozenset[int], vocab: VocabShard) -> None:
        self._eos_token_ids = eos_token_ids
        self._vocab = vocab

    def sample(self, logits: Tensor, rows: Sequence[SampleRow]) -> list[Choice]:
        """Draw tokens for each row.

        Args:
            logits: ``[num_rows, local_vocab_size]`` float32, this rank's; may be overwritten.
            rows: One description a row of logits.
        """
        originals = {
            i: logits[i].clone()
            for i, row in enumerate(rows)
            if row.sequence.sampling.logprobs is not None
        }
        for scores, row in zip(logits, rows, strict=True):
            self._adjust(scores, row)
        tokens = self._choose(logits, rows)
        described = [
            LogprobsRow(original, tokens[i], rows[i].sequence.sampling.logprobs or 0)
            for i, original in originals.items()
        ]
        logprobs = dict(zip(originals, position_logprobs(self._vocab, described), strict=True))
        return [Choice(chosen, logprobs.get(i, ())) for i, chosen in enumerate(tokens)]

    def _choose(self, logits: Tensor, rows: Sequence[SampleRow]) -> list[tuple[int, ...]]:
        """Each row's tokens, by its adjusted logits."""
        is_greedy = [row.sequence.sampling.is_greedy for row in rows]
        likeliest = self._vocab.argmax(logits).tolist() if any(is_greedy) else [0] * len(rows)
        draws = [
            _draw_of(scores, row)
            for scores, row, greedy in zip(logits, rows, is_greedy, strict=True)
            if not greedy
        ]
        drawn = iter(draw_tokens(self._vocab, draws))
        return [
            (token,) * row.num_samples if greedy else next(drawn)
            for token, row, greedy in zip(likeliest, rows, is_greedy, strict=True)
        ]

    def _adjust(self, scores: Tensor, row: SampleRow) -> None:
        """Apply penalties, biases and the minimum length to a row of scores in place."""
        sampling, own = row.sequence.sampling, self._vocab.places
        if sampling.repetition_penalty != 1.0:
            seen = torch.from_numpy(own(np.union1d(row.prompt_tokens, row.output_tokens)))
            values = scores[seen]
            penalty = sampling.repetition_penalty
            scores[seen] = torch.where(values > 0, values / penalty, values * penalty)
        if sampling.presence_penalty or sampling.frequency_penalty:
            tokens, counts = np.unique(own(row.output_tokens), return_counts=True)
            penalties = sampling.presence_penalty + sampling.frequency_penalty * counts
            scores[torch.from_numpy(tokens)] -= torch.from_numpy(penalties.astype(np.float32))
        for token, bias in sampling.logit_bias:
            if token in self._vocab.token_ids:
                scores[token - self._vocab.token_ids.start] += bias
        if len(row.output_tokens) < sampling.min_tokens:
            ends = np.array([*self._eos_token_ids, *sampling.stop_token_ids], dtype=np.int64)
            scores[torch.from_numpy(own(ends))] = -torch.inf


def uniform(seed: int, index: int, position: int) -> float:
    """A number in [0, 1) that depends on its arguments alone."""
    counter = struct.pack("<QII", seed, index, position)
    digest = hashlib.blake2b(counter, digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def _draw_of(scores: Tensor, row: SampleRow) -> Draw:
    sampling, first, position = row.sequence.sampling, row.sequence.index, len(row.output_tokens)
    uniforms = [uniform(sampling.seed, first + i, position) for i in range(row.num_samples)]
    return Draw(
        scores.div_(sampling.temperature),
        sampling,
        torch.tensor(uniforms, dtype=torch.float64, device=scores.device),
    )
