"""Penalties, biases and minimum lengths are those of each row's own tokens, however it got them."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fabric.core.sampling import SamplingParams
from fabric.engine.adjustment import AdjustedRow, Adjustment, TokenHistory, adjust, is_adjusted
from fabric.engine.sampler import Sampler, SampleRow
from fabric.engine.vocab_parallel import VocabShard
from tests.unit.test_engine_sampler import params, row

pytestmark = pytest.mark.usefixtures("one_torch_thread")

EOS = (3,)
PROMPT = np.array([5, 9, 5, 60])
OUTPUT = np.array([9, 7, 7, 99, 0, 7])
SAMPLINGS = {
    "repetition": params(repetition_penalty=1.5),
    "encouraged repetition": params(repetition_penalty=0.5),
    "presence": params(presence_penalty=0.7),
    "frequency": params(frequency_penalty=-0.3),
    "all penalties": params(repetition_penalty=1.2, presence_penalty=0.5, frequency_penalty=0.25),
    "bias": params(logit_bias=((7, 2.5), (99, -100.0))),
    "minimum": params(min_tokens=9, stop_token_ids=(42, 7)),
    "minimum reached": params(min_tokens=6, stop_token_ids=(42,)),
    "everything": params(
        repetition_penalty=1.2, frequency_penalty=0.25, logit_bias=((3, 9.0),), min_tokens=9
    ),
}


def scores_of(num_rows: int) -> Tensor:
    return torch.randn(num_rows, 100, generator=torch.Generator().manual_seed(3)) * 3


def expected(scores: Tensor, sampling: SamplingParams) -> Tensor:
    """By the definition, token by token."""
    adjusted = scores.clone()
    output = OUTPUT.tolist()
    for token in range(100):
        score = scores[token]
        if token in {*PROMPT.tolist(), *output}:
            penalty = sampling.repetition_penalty
            score = score / penalty if score > 0 else score * penalty
        if token in output:
            score = score - (
                sampling.presence_penalty + sampling.frequency_penalty * output.count(token)
            )
        adjusted[token] = score + dict(sampling.logit_bias).get(token, 0.0)
        if len(output) < sampling.min_tokens and token in (*EOS, *sampling.stop_token_ids):
            adjusted[token] = -torch.inf
    return adjusted


def adjusted_row(number: int, sampling: SamplingParams) -> AdjustedRow:
    return AdjustedRow(number, Adjustment(sampling, PROMPT, EOS), OUTPUT)


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS.keys())
def test_a_row_is_adjusted_as_its_parameters_say(sampling: SamplingParams):
    scores = scores_of(1)
    wanted = expected(scores[0], sampling)
    assert is_adjusted(sampling, len(OUTPUT)) is not torch.equal(wanted, scores[0])
    adjust(scores, [adjusted_row(0, sampling)], range(100))
    torch.testing.assert_close(scores[0], wanted)


def test_rows_are_adjusted_together_as_they_are_alone():
    together = scores_of(len(SAMPLINGS))
    rows = [adjusted_row(i, sampling) for i, sampling in enumerate(SAMPLINGS.values())]
    alone = together.clone()
    for adjusted in rows:
        adjust(alone, [adjusted], range(100))
    adjust(together, rows, range(100))
    assert torch.equal(together, alone)


@pytest.mark.parametrize("own", [range(50), range(50, 100), range(10, 20)])
def test_a_rank_adjusts_its_own_tokens(own: range):
    whole = scores_of(len(SAMPLINGS))
    part = whole[:, own.start : own.stop].clone()
    rows = [adjusted_row(i, sampling) for i, sampling in enumerate(SAMPLINGS.values())]
    adjust(whole, rows, range(100))
    adjust(part, rows, own)
    assert torch.equal(part, whole[:, own.start : own.stop])


def test_a_history_that_followed_is_one_that_is_made_anew():
    followed, anew = TokenHistory(PROMPT, 0.5, 0.25), TokenHistory(PROMPT, 0.5, 0.25)
    output = np.random.default_rng(1).integers(0, 400, 500)
    for length in range(1, 501):
        followed.follow(output[:length])
    anew.follow(output)
    assert followed.tokens.tolist() == anew.tokens.tolist()
    assert followed.penalties.tolist() == anew.penalties.tolist()
    assert sorted(anew.tokens.tolist()) == sorted({*PROMPT.tolist(), *output.tolist()})


def test_a_sequence_that_is_computed_again_gets_the_same_tokens():
    sampling = params(frequency_penalty=0.9, repetition_penalty=1.3, seed=4)
    sampler = Sampler(frozenset(EOS), VocabShard.whole(100))
    scores, kept = scores_of(1), row(sampling)
    output: tuple[int, ...] = ()
    for _ in range(40):
        tokens = np.array(output, dtype=np.int64)
        known = SampleRow(kept.sequence, kept.prompt_tokens, tokens, 1)
        (chosen,) = sampler.sample(scores.clone(), [known])
        (again,) = sampler.sample(scores.clone(), [row(sampling, output=output)])
        assert chosen == again
        output += chosen.token_ids


def test_greedy_rows_in_bfloat16_choose_as_they_do_in_float32():
    scores = scores_of(20).bfloat16()
    rows = [row(params(temperature=0.0))] * 20
    sampler = Sampler(frozenset(EOS), VocabShard.whole(100))
    assert sampler.sample(scores.clone(), rows) == sampler.sample(scores.float(), rows)


def test_a_row_in_bfloat16_is_drawn_and_described_in_float32():
    scores = scores_of(4).bfloat16()
    rows = [row(params(seed=i, logprobs=3, presence_penalty=0.1), output=(7,)) for i in range(4)]
    sampler = Sampler(frozenset(EOS), VocabShard.whole(100))
    again = [row(item.sequence.sampling, output=(7,)) for item in rows]
    assert sampler.sample(scores.clone(), rows) == sampler.sample(scores.float(), again)
