"""Ranks that have a part of the logits each choose what one rank with all of them would."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor

from fabric.core.plan import ParallelConfig
from fabric.core.sampling import SamplingParams
from fabric.engine.drawing import GROWTH, NUM_CANDIDATES
from fabric.engine.sampler import Choice, Sampler, SampleRow
from fabric.engine.vocab_parallel import VocabShard
from fabric.models.config import ModelConfig
from fabric.models.shard import shard_of
from fabric.parallel.local import LocalGroup
from fabric.parallel.traffic import Traffic
from tests.unit.test_engine_sampler import params, row
from tests.unit.thread_ranks import on_ranks
from tests.unit.tiny_models import TINY

pytestmark = pytest.mark.usefixtures("one_torch_thread")

EOS = frozenset({3})
SAMPLINGS = {
    "greedy": params(temperature=0.0),
    "plain": params(),
    "hot": params(temperature=3.0),
    "top-k": params(top_k=40),
    "more than a rank has": params(top_k=1999, temperature=4.0),
    "top-p": params(top_p=0.9),
    "top-p of a flat row": params(top_p=0.95, temperature=20.0),
    "top-k and top-p": params(top_k=50, top_p=0.8),
    "min-p": params(min_p=0.05),
    "penalties": params(temperature=0.0, repetition_penalty=1.3, presence_penalty=0.4),
    "counts": params(frequency_penalty=0.6, top_k=20),
    "bias": params(temperature=0.0, logit_bias=((42, 30.0), (1200, 29.0))),
    "minimum": params(min_tokens=5, stop_token_ids=(7, 1500)),
    "logprobs": params(logprobs=5),
    "greedy logprobs": params(temperature=0.0, logprobs=0),
}


def vocab_of(group: LocalGroup, vocab_size: int) -> VocabShard:
    heads = {"num_attention_heads": 12, "num_key_value_heads": 12, "head_dim": 4}
    config = ModelConfig.from_hf(TINY | heads | {"vocab_size": vocab_size})
    shard = shard_of(config, ParallelConfig(1, group.size), 0, group.rank)
    return VocabShard(group, shard.vocabulary(config), vocab_size)


def sample(logits: Tensor, rows: list[SampleRow], size: int) -> tuple[list[Choice], Traffic]:
    """What all ranks choose, and what one of them handed to the group."""

    def work(group: LocalGroup) -> tuple[list[Choice], Traffic]:
        vocab = vocab_of(group, logits.shape[1])
        own = logits[:, vocab.token_ids.start : vocab.token_ids.stop].clone()
        chosen = Sampler(EOS, vocab).sample(own, deepcopy(rows))
        return chosen, group.traffic

    results = on_ranks(size, work)
    assert all(chosen == results[0][0] for chosen, _ in results)
    return results[0]


def random_logits(num_rows: int, vocab_size: int = 2001) -> Tensor:
    return torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(7)) * 3


def rows_of(sampling: SamplingParams, num_rows: int) -> list[SampleRow]:
    prompt, output = (1, 2, 900), (5, 5, 1700)
    return [
        row(sampling, prompt, output, num_samples=1 + i % 2, index=10 * i) for i in range(num_rows)
    ]


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS.keys())
def test_ranks_together_choose_what_one_rank_does(sampling: SamplingParams, size: int):
    logits, rows = random_logits(6), rows_of(sampling, 6)
    expected = Sampler(EOS, VocabShard.whole(2001)).sample(logits.clone(), rows)
    choices, _ = sample(logits, rows, size)
    for choice, alone in zip(choices, expected, strict=True):
        assert choice.token_ids == alone.token_ids
        for position, lone in zip(choice.logprobs, alone.logprobs, strict=True):
            assert position.chosen.rank == lone.chosen.rank
            assert position.chosen.logprob == pytest.approx(lone.chosen.logprob, abs=1e-5)
            assert [t.token_id for t in position.top] == [t.token_id for t in lone.top]


def test_rows_of_all_kinds_can_be_mixed_and_do_not_see_each_other():
    logits = random_logits(len(SAMPLINGS))
    rows = [row(sampling, (1,), (5,), index=i) for i, sampling in enumerate(SAMPLINGS.values())]
    together, _ = sample(logits, rows, 2)
    for i, item in enumerate(rows):
        assert sample(logits[i : i + 1], [item], 2)[0] == [together[i]]


def test_of_equal_scores_the_lowest_token_is_taken():
    logits = torch.zeros(2, 2001)
    logits[0, [700, 1400, 1900]] = 5.0
    rows = [row(params(temperature=0.0))] * 2
    for size in (1, 2, 3, 4):
        chosen, _ = sample(logits, rows, size)
        assert [choice.token_ids for choice in chosen] == [(700,), (0,)]


def test_draws_of_ranks_follow_the_softmax():
    logits = torch.log(torch.tensor([[0.4, 0.1, 0.2, 0.3]]))
    rows = [row(params(seed=i)) for i in range(2000)]
    choices, _ = sample(logits.expand(2000, 4), rows, 2)
    shares = torch.bincount(torch.tensor([c.token_ids[0] for c in choices])) / 2000
    assert (shares - torch.tensor([0.4, 0.1, 0.2, 0.3])).abs().max() < 0.03


def test_a_masked_token_is_never_drawn():
    logits = torch.zeros(1, 4)
    rows = [row(params(seed=i, min_tokens=1, stop_token_ids=(0, 1)), ()) for i in range(300)]
    choices, _ = sample(logits.expand(300, 4), rows, 2)
    assert {choice.token_ids[0] for choice in choices} == {2}


@pytest.mark.parametrize(
    ("sampling", "calls", "gathered", "summed"),
    [
        (params(temperature=0.0), 1, 8, 0),
        (params(top_k=40), 1, 8 * 40, 0),
        (params(top_k=40, top_p=0.5), 1, 8 * 40, 0),
        (params(top_p=0.5), 2, 4 + 8 * NUM_CANDIDATES, 0),
        (params(), 1, 4, 8),
        (params(temperature=0.0, logprobs=5), 3, 8 + 4 + 8 * 5, 4 + 8),
    ],
    ids=["greedy", "top-k", "top-k and top-p", "top-p", "plain", "logprobs"],
)
def test_gathered_bytes_are_those_of_candidates_not_of_the_vocabulary(
    sampling: SamplingParams, calls: int, gathered: int, summed: int
):
    num_rows = 5
    rows = [row(sampling, index=i) for i in range(num_rows)]
    _, traffic = sample(random_logits(num_rows), rows, 2)
    assert traffic.calls["all_gather"] == calls
    assert traffic.num_bytes["all_gather"] == num_rows * gathered
    assert traffic.num_bytes["all_reduce"] == num_rows * summed


def test_more_candidates_are_gathered_only_for_rows_that_need_them():
    logits = random_logits(2, vocab_size=20_000)
    logits[1] = 0.0
    rows = [row(params(top_p=0.5))] * 2
    _, traffic = sample(logits, rows, 2)
    first, more, most = 2 * NUM_CANDIDATES, GROWTH * NUM_CANDIDATES, 20_000 // 2
    assert traffic.num_bytes["all_gather"] == 2 * 4 + 8 * (first + more + most)
