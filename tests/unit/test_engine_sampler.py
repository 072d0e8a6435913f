import numpy as np
import pytest
import torch

from fabric.core.sampling import SamplingParams
from fabric.engine.sampler import Sampler, SampleRow, uniform
from fabric.engine.sequence_table import SequenceRow
from fabric.engine.vocab_parallel import VocabShard

VOCAB = 100
EOS = 3


def row(
    sampling: SamplingParams,
    prompt: tuple[int, ...] = (1, 2),
    output: tuple[int, ...] = (),
    num_samples: int = 1,
    index: int = 0,
) -> SampleRow:
    sequence = SequenceRow(
        row=0,
        index=index,
        num_prompt_tokens=len(prompt),
        num_tokens=len(prompt) + len(output),
        num_blocks=1,
        sampling=sampling,
    )
    return SampleRow(
        sequence, np.array(prompt, dtype=np.int64), np.array(output, dtype=np.int64), num_samples
    )


def params(**changes: object) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 8, **changes})  # type: ignore[arg-type]


def logits(seed: int = 0, num_rows: int = 1) -> torch.Tensor:
    return torch.randn(num_rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def sampler(vocab_size: int) -> Sampler:
    return Sampler(frozenset({EOS}), VocabShard.whole(vocab_size))


def sample_one(scores: torch.Tensor, item: SampleRow) -> int:
    return sampler(scores.shape[1]).sample(scores, [item])[0].token_ids[0]


def test_temperature_zero_takes_the_most_likely_token() -> None:
    scores = logits()
    assert sample_one(scores, row(params(temperature=0.0))) == int(scores.argmax())


def test_top_k_of_one_is_greedy_at_any_temperature() -> None:
    scores = logits()
    item = row(params(temperature=5.0, top_k=1, seed=11))
    assert sample_one(scores, item) == int(scores.argmax())


@pytest.mark.parametrize("changes", [{"top_k": 5}, {"top_p": 0.5}, {"min_p": 0.2}])
def test_draws_stay_within_the_kept_tokens_and_reach_all_of_them(changes: dict[str, float]) -> None:
    scores = logits()
    probabilities = torch.softmax(scores[0], dim=-1)
    order = probabilities.argsort(descending=True).tolist()
    if "top_k" in changes:
        kept = set(order[:5])
    elif "top_p" in changes:
        mass = torch.cumsum(probabilities[order], dim=0)
        kept = set(order[: int((mass < 0.5).sum()) + 1])
    else:
        limit = 0.2 * probabilities.max()
        kept = {token for token in order if probabilities[token] >= limit}
    drawn = {sample_one(scores.clone(), row(params(seed=i, **changes))) for i in range(500)}
    assert drawn <= kept
    assert len(drawn) >= len(kept) - 1


def test_a_flat_distribution_is_cut_as_exactly_as_a_peaked_one() -> None:
    flat = torch.zeros(1, 4096)
    drawn = {sample_one(flat.clone(), row(params(seed=i, top_p=0.9))) for i in range(200)}
    assert max(drawn) > 600


def test_draws_follow_the_softmax() -> None:
    scores = torch.log(torch.tensor([[0.7, 0.2, 0.1]]))
    drawn = [sample_one(scores.clone(), row(params(seed=i))) for i in range(3000)]
    shares = np.bincount(drawn, minlength=3) / len(drawn)
    np.testing.assert_allclose(shares, [0.7, 0.2, 0.1], atol=0.03)


def test_a_rows_token_does_not_depend_on_the_other_rows() -> None:
    scores = logits(num_rows=8)
    rows = [row(params(temperature=0.8, top_p=0.95, seed=i)) for i in range(8)]
    together = sampler(VOCAB).sample(scores.clone(), rows)
    for i, item in enumerate(rows):
        assert sampler(VOCAB).sample(scores[i : i + 1].clone(), [item])[0] == together[i]


def test_several_samples_of_one_row_are_those_of_each_index() -> None:
    scores, sampling = logits(), params(seed=5)
    together = sampler(VOCAB).sample(scores.clone(), [row(sampling, num_samples=4)])[0]
    each = tuple(sample_one(scores.clone(), row(sampling, index=i)) for i in range(4))
    assert together.token_ids == each


def test_repetition_penalty_pushes_down_what_prompt_and_output_hold() -> None:
    scores = torch.tensor([[2.0, 1.9, -1.0, 0.0]])
    item = row(params(temperature=0.0, repetition_penalty=2.0), prompt=(0,), output=(2,))
    assert sample_one(scores, item) == 1


def test_presence_and_frequency_penalties_count_output_tokens_only() -> None:
    scores = torch.tensor([[3.0, 2.5, 0.0, 0.0]])
    once = row(params(temperature=0.0, presence_penalty=1.0), prompt=(0, 0), output=(0,))
    assert sample_one(scores.clone(), once) == 1
    prompt_only = row(params(temperature=0.0, presence_penalty=1.0), prompt=(0, 0), output=())
    assert sample_one(scores.clone(), prompt_only) == 0
    twice = row(params(temperature=0.0, frequency_penalty=0.3), prompt=(), output=(0, 0))
    assert sample_one(scores.clone(), twice) == 1


def test_logit_bias_moves_a_token() -> None:
    item = row(params(temperature=0.0, logit_bias=((42, 100.0),)))
    assert sample_one(logits(), item) == 42


def test_eos_and_stop_tokens_cannot_come_before_the_minimum() -> None:
    scores = torch.zeros(1, VOCAB)
    scores[0, EOS], scores[0, 7], scores[0, 9] = 9.0, 8.0, 7.0
    early = row(params(temperature=0.0, min_tokens=2, stop_token_ids=(7,)), output=(5,))
    assert sample_one(scores.clone(), early) == 9
    late = row(params(temperature=0.0, min_tokens=2, stop_token_ids=(7,)), output=(5, 5))
    assert sample_one(scores.clone(), late) == EOS


def test_logprobs_are_the_models_own_before_penalties() -> None:
    scores = logits()
    expected = torch.log_softmax(scores[0], dim=-1)
    item = row(params(temperature=0.0, logprobs=3, logit_bias=((42, 100.0),)))
    choice = sampler(VOCAB).sample(scores.clone(), [item])[0]
    position = choice.logprobs[0]
    assert position.chosen.token_id == 42
    assert position.chosen.logprob == pytest.approx(float(expected[42]))
    assert position.chosen.rank == 1 + int((expected > expected[42]).sum())
    assert [top.token_id for top in position.top] == expected.topk(3).indices.tolist()


def test_random_numbers_depend_on_seed_index_and_position_and_are_even() -> None:
    values = {uniform(s, i, p) for s in range(10) for i in range(10) for p in range(10)}
    assert len(values) == 1000
    assert 0.45 < sum(values) / 1000 < 0.55
    assert all(0.0 <= value < 1.0 for value in values)
