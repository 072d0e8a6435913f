"""Chooses tokens from logits; each row's choice depends on that row and its request alone."""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fabric.core.request import PositionLogprobs, TokenLogprob
from fabric.core.sampling import SamplingParams
from fabric.engine.sequence_table import IntArray, SequenceRow

NUM_CANDIDATES = 512


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
    gives the same tokens in any batch, and after recomputation.
    """

    def __init__(self, eos_token_ids: frozenset[int]) -> None:
        self._eos_token_ids = eos_token_ids

    def sample(self, logits: Tensor, rows: Sequence[SampleRow]) -> list[Choice]:
        """Draw tokens for each row.

        Args:
            logits: ``[num_rows, vocab_size]`` float32; may be overwritten.
            rows: One description a row of logits.
        """
        greedy = torch.argmax(logits, dim=-1).tolist()
        return [
            Choice((token,) * row.num_samples)
            if _is_plain_greedy(row.sequence.sampling)
            else self._sample_row(row_logits, row)
            for row_logits, row, token in zip(logits, rows, greedy, strict=True)
        ]

    def _sample_row(self, logits: Tensor, row: SampleRow) -> Choice:
        sampling = row.sequence.sampling
        scores = self._adjust(logits.clone(), row)
        if sampling.is_greedy:
            tokens = (int(scores.argmax()),) * row.num_samples
        else:
            first = row.sequence.index
            position = len(row.output_tokens)
            draws = [uniform(sampling.seed, first + i, position) for i in range(row.num_samples)]
            tokens = _draw(scores / sampling.temperature, sampling, draws)
        if sampling.logprobs is None:
            return Choice(tokens)
        logprobs = torch.log_softmax(logits, dim=-1)
        return Choice(tokens, tuple(_logprobs(logprobs, t, sampling.logprobs) for t in tokens))

    def _adjust(self, scores: Tensor, row: SampleRow) -> Tensor:
        """Apply penalties, biases and the minimum length to ``[vocab_size]`` scores in place."""
        sampling = row.sequence.sampling
        if sampling.repetition_penalty != 1.0:
            seen = torch.from_numpy(np.union1d(row.prompt_tokens, row.output_tokens))
            values = scores[seen]
            penalty = sampling.repetition_penalty
            scores[seen] = torch.where(values > 0, values / penalty, values * penalty)
        if sampling.presence_penalty or sampling.frequency_penalty:
            tokens, counts = np.unique(row.output_tokens, return_counts=True)
            penalties = sampling.presence_penalty + sampling.frequency_penalty * counts
            scores[torch.from_numpy(tokens)] -= torch.from_numpy(penalties.astype(np.float32))
        for token, bias in sampling.logit_bias:
            scores[token] += bias
        if len(row.output_tokens) < sampling.min_tokens:
            scores[list(self._eos_token_ids | set(sampling.stop_token_ids))] = -torch.inf
        return scores


def uniform(seed: int, index: int, position: int) -> float:
    """A number in [0, 1) that depends on its arguments alone."""
    counter = struct.pack("<QII", seed, index, position)
    digest = hashlib.blake2b(counter, digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def _is_plain_greedy(sampling: SamplingParams) -> bool:
    return (
        sampling.is_greedy
        and sampling.repetition_penalty == 1.0
        and not sampling.presence_penalty
        and not sampling.frequency_penalty
        and not sampling.logit_bias
        and not sampling.min_tokens
        and sampling.logprobs is None
    )


def _draw(scores: Tensor, sampling: SamplingParams, draws: list[float]) -> tuple[int, ...]:
    """Inverse-transform sampling from the tokens that top-k, top-p and min-p keep."""
    tokens, probabilities = _candidates(scores, sampling)
    cumulative = torch.cumsum(probabilities, dim=-1, dtype=torch.float64)
    targets = torch.tensor(draws, dtype=torch.float64) * cumulative[-1]
    picked = torch.searchsorted(cumulative, targets, right=True)
    picked.clamp_(max=len(probabilities) - 1)
    return tuple((picked if tokens is None else tokens[picked]).tolist())


def _candidates(scores: Tensor, sampling: SamplingParams) -> tuple[Tensor | None, Tensor]:
    """Token ids (None: all, in order) and their probabilities, not normalised."""
    vocab_size = len(scores)
    has_top_k = 0 < sampling.top_k < vocab_size
    if not has_top_k and sampling.top_p >= 1.0 and sampling.min_p <= 0.0:
        return None, torch.softmax(scores, dim=-1)
    count = sampling.top_k if has_top_k else min(NUM_CANDIDATES, vocab_size)
    values, tokens = torch.topk(scores, count)
    # top-p is a share of what top-k left; without top-k, of the whole distribution.
    total = torch.logsumexp(values if has_top_k else scores, dim=-1)
    kept = _num_kept(torch.exp(values - total), sampling)
    if kept == count < vocab_size and not has_top_k:
        values, tokens = torch.sort(scores, descending=True, stable=True)
        kept = _num_kept(torch.exp(values - total), sampling)
    return tokens[:kept], torch.exp(values[:kept] - total)


def _num_kept(probabilities: Tensor, sampling: SamplingParams) -> int:
    """How many of the tokens, most likely first, top-p and min-p keep; at least one."""
    before = torch.cumsum(probabilities, dim=-1, dtype=torch.float64) - probabilities
    keep = before < sampling.top_p
    keep &= probabilities >= sampling.min_p * probabilities[0]
    return max(1, int(keep.sum()))


def _logprobs(logprobs: Tensor, token: int, num_top: int) -> PositionLogprobs:
    rank = 1 + int((logprobs > logprobs[token]).sum())
    chosen = TokenLogprob(token, float(logprobs[token]), rank)
    values, tokens = torch.topk(logprobs, num_top)
    pairs = zip(tokens.tolist(), values.tolist(), strict=True)
    return PositionLogprobs(
        chosen, tuple(TokenLogprob(t, value, i) for i, (t, value) in enumerate(pairs, start=1))
    )
