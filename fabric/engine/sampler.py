"""Chooses tokens from logits; each row's choice depends on that row and its request alone."""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fabric.core.request import PositionLogprobs
from fabric.engine.adjustment import AdjustedRow, Adjustment, adjust, is_adjusted
from fabric.engine.drawing import draw_tokens
from fabric.engine.logprobs import LogprobsRow, position_logprobs
from fabric.engine.sequence_table import IntArray, SequenceRow
from fabric.engine.vocab_parallel import VocabShard
from kernels.scores import Draw


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
            logits: ``[num_rows, local_vocab_size]`` float32 or bfloat16, this rank's; may be
                overwritten.
            rows: One description a row of logits.
        """
        samplings = [row.sequence.sampling for row in rows]
        described = [i for i, s in enumerate(samplings) if s.logprobs is not None]
        adjusted = [
            self._adjusted(i, row)
            for i, row in enumerate(rows)
            if is_adjusted(row.sequence.sampling, len(row.output_tokens))
        ]
        if described or adjusted or not all(s.is_greedy for s in samplings):
            logits = logits.float()
        originals = logits
        if described and adjusted:
            originals = logits[described]
        if adjusted:
            adjust(logits, adjusted, self._vocab.token_ids)
        tokens = self._choose(logits, rows)
        if not described:
            return [Choice(chosen) for chosen in tokens]
        wanted = [
            LogprobsRow(i if originals is logits else place, tokens[i], samplings[i].logprobs or 0)
            for place, i in enumerate(described)
        ]
        logprobs = position_logprobs(self._vocab, originals, wanted)
        known = dict(zip(described, logprobs, strict=True))
        return [Choice(chosen, known.get(i, ())) for i, chosen in enumerate(tokens)]

    def _adjusted(self, number: int, row: SampleRow) -> AdjustedRow:
        sequence = row.sequence
        if sequence.adjustment is None:
            sequence.adjustment = Adjustment(
                sequence.sampling, row.prompt_tokens, self._eos_token_ids
            )
        return AdjustedRow(number, sequence.adjustment, row.output_tokens)

    def _choose(self, logits: Tensor, rows: Sequence[SampleRow]) -> list[tuple[int, ...]]:
        """Each row's tokens, by its adjusted logits."""
        drawn = [i for i, row in enumerate(rows) if not row.sequence.sampling.is_greedy]
        if len(drawn) == len(rows):
            return draw_tokens(self._vocab, logits, [_draw_of(i, rows[i]) for i in drawn])
        likeliest = self._vocab.argmax(logits)
        chosen = [(token,) * row.num_samples for token, row in zip(likeliest, rows, strict=True)]
        if drawn:
            draws = [_draw_of(i, rows[i]) for i in drawn]
            for i, tokens in zip(drawn, draw_tokens(self._vocab, logits, draws), strict=True):
                chosen[i] = tokens
        return chosen


def uniform(seed: int, index: int, position: int) -> float:
    """A number in [0, 1) that depends on its arguments alone."""
    counter = struct.pack("<QII", seed, index, position)
    digest = hashlib.blake2b(counter, digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def _draw_of(number: int, row: SampleRow) -> Draw:
    sampling, first, position = row.sequence.sampling, row.sequence.index, len(row.output_tokens)
    uniforms = tuple(uniform(sampling.seed, first + i, position) for i in range(row.num_samples))
    return Draw(
        number,
        uniforms,
        sampling.temperature,
        sampling.top_k,
        sampling.top_p,
        sampling.min_p,
    )
