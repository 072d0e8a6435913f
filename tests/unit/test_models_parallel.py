"""A model cut over ranks and stages computes what the whole model does."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fabric.models.checkpoint import SafetensorsCheckpoint
from fabric.models.config import ModelConfig
from fabric.models.llama import LlamaForCausalLM
from fabric.parallel.local import LocalGroup
from kernels.ops import RaggedBatch
from tests.unit.thread_ranks import Cut, on_ranks
from tests.unit.tiny_models import TINY, TINY_QWEN2, DictCheckpoint, OneSequence, random_tensors

pytestmark = pytest.mark.usefixtures("one_torch_thread")

PROMPT = [1, 5, 90, 33, 2, 64, 7, 7, 18, 40, 3]
NUM_TOKENS = 64
TOLERANCE = 1e-4
FOUR_LAYERS = {"num_hidden_layers": 4}
MODELS: dict[str, dict[str, object]] = {
    "grouped": FOUR_LAYERS,
    "tied": FOUR_LAYERS | {"tie_word_embeddings": True},
    "one KV head": FOUR_LAYERS | {"num_key_value_heads": 1},
    "no grouping": FOUR_LAYERS | {"num_key_value_heads": 6},
    "uneven": FOUR_LAYERS | {"vocab_size": 97, "intermediate_size": 81},
    "SmolLM2's heads": {
        "hidden_size": 72,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "num_hidden_layers": 3,
        "tie_word_embeddings": True,
    },
    "Qwen2": TINY_QWEN2 | FOUR_LAYERS,
    "Qwen2's heads": TINY_QWEN2
    | {"hidden_size": 112, "num_attention_heads": 14, "tie_word_embeddings": True},
}
CUTS = [
    ("grouped", Cut(tensor=2)),
    ("grouped", Cut(tensor=6)),
    ("grouped", Cut(pipeline=2)),
    ("grouped", Cut(pipeline=3)),
    ("grouped", Cut(2, 2)),
    ("grouped", Cut(2, 3, layer_split=(1, 1, 2))),
    ("tied", Cut(2, 2, layer_split=(3, 1))),
    ("tied", Cut(pipeline=4)),
    ("one KV head", Cut(tensor=3)),
    ("one KV head", Cut(tensor=6)),
    ("no grouping", Cut(tensor=2)),
    ("no grouping", Cut(tensor=3, pipeline=2)),
    ("uneven", Cut(tensor=2)),
    ("uneven", Cut(2, 2)),
    ("SmolLM2's heads", Cut(tensor=3)),
    ("SmolLM2's heads", Cut(tensor=9)),
    ("SmolLM2's heads", Cut(3, 2)),
    ("Qwen2", Cut(tensor=2)),
    ("Qwen2", Cut(tensor=6)),
    ("Qwen2", Cut(pipeline=2)),
    ("Qwen2", Cut(2, 2)),
    ("Qwen2's heads", Cut(tensor=2)),
    ("Qwen2's heads", Cut(2, 2)),
]


@cache
def model(name: str) -> tuple[ModelConfig, DictCheckpoint]:
    config = ModelConfig.from_hf(TINY | MODELS[name])
    return config, DictCheckpoint(random_tensors(config))


@cache
def whole(name: str) -> tuple[Tensor, list[int]]:
    return Cut().run(*model(name), PROMPT, NUM_TOKENS)


@pytest.mark.parametrize(("name", "cut"), CUTS, ids=str)
def test_a_cut_model_has_the_logits_and_tokens_of_the_whole(name: str, cut: Cut):
    logits, tokens = cut.run(*model(name), PROMPT, NUM_TOKENS)
    expected_logits, expected_tokens = whole(name)
    assert (logits - expected_logits).abs().max() < TOLERANCE
    assert tokens == expected_tokens


@pytest.mark.parametrize("pipeline", [2, 3, 5])
def test_stages_alone_change_no_bit(pipeline: int):
    config = ModelConfig.from_hf(TINY | {"num_hidden_layers": 5})
    checkpoint = DictCheckpoint(random_tensors(config))
    for dtype in (torch.float32, torch.bfloat16):
        results = [
            on_ranks(
                1,
                lambda group, cut=cut, dtype=dtype: OneSequence(
                    cut.stages(config, checkpoint, group, dtype), dtype
                ).logits(PROMPT),
            )[0]
            for cut in (Cut(), Cut(pipeline=pipeline))
        ]
        assert torch.equal(*results)


@pytest.mark.parametrize(
    "cut",
    [Cut(2), Cut(4), Cut(8), Cut(1, 2), Cut(1, 3), Cut(2, 2), Cut(2, 3, layer_split=(1, 3, 1))],
    ids=str,
)
def test_stories260k_tells_the_same_story_however_it_is_cut(stories_path: Path, cut: Cut):
    config = ModelConfig.from_hf(json.loads((stories_path / "config.json").read_text()))
    checkpoint = SafetensorsCheckpoint(stories_path)
    prompt = [1, 403, 407, 261, 378]
    expected_logits, expected_tokens = Cut().run(config, checkpoint, prompt, NUM_TOKENS)
    logits, tokens = cut.run(config, checkpoint, prompt, NUM_TOKENS)
    assert (logits - expected_logits).abs().max() < TOLERANCE
    assert tokens == expected_tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_layer_reduces_twice_and_the_embedding_once(dtype: torch.dtype):
    config, checkpoint = model("grouped")

    def traffic_of_stages(group: LocalGroup) -> list[tuple[int, int]]:
        cut = Cut(tensor=2, pipeline=2, layer_split=(1, 3))
        stages, counts = cut.stages(config, checkpoint, group, dtype), []
        hidden = stages[0].embed(torch.tensor(PROMPT))
        for stage in stages:
            hidden = stage.forward(hidden, prompt_batch(), stage_cache(stage, dtype))
            counts.append(
                (group.traffic.calls["all_reduce"], group.traffic.num_bytes["all_reduce"])
            )
        stages[-1].logits(hidden, torch.tensor([3]))
        assert dict(group.traffic.calls) == {"all_reduce": counts[-1][0]}
        return counts

    tensor_bytes = len(PROMPT) * config.hidden_size * dtype.itemsize
    first, both = 1 + 2 * 1, 1 + 2 * 4
    expected = [(first, first * tensor_bytes), (both, both * tensor_bytes)]
    assert on_ranks(2, traffic_of_stages) == [expected, expected]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "tensor"), [("grouped", 2), ("grouped", 6), ("Qwen2", 2)])
def test_a_token_is_bitwise_the_same_alone_and_in_a_batch(
    name: str, tensor: int, dtype: torch.dtype
):
    config, checkpoint = model(name)
    prompts = [PROMPT, PROMPT[3:], [9], PROMPT[::-1] * 2]

    def run(group: LocalGroup) -> tuple[list[Tensor], list[Tensor]]:
        stages = Cut(tensor).stages(config, checkpoint, group, dtype)
        alone = [OneSequence(stages, dtype).logits(prompt) for prompt in prompts]
        return alone, together(stages[0], prompts, dtype)

    for alone, batched in on_ranks(tensor, run):
        assert all(map(torch.equal, alone, batched))


def together(model: LlamaForCausalLM, prompts: list[list[int]], dtype: torch.dtype) -> list[Tensor]:
    """Each prompt's logits, all in one forward pass with two blocks of 16 tokens each."""
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    ends = torch.cumsum(lengths, dim=0)
    positions = torch.cat([torch.arange(length) for length in lengths])
    owners = torch.repeat_interleave(torch.arange(len(prompts)), lengths)
    batch = RaggedBatch(
        positions=positions.int(),
        slots=32 * owners + positions,
        query_start=torch.cat([torch.zeros(1), ends]).int(),
        context_lens=lengths.int(),
        block_tables=torch.arange(2 * len(prompts), dtype=torch.int32).view(-1, 2),
    )
    hidden = model.embed(torch.tensor([token for prompt in prompts for token in prompt]))
    hidden = model.forward(hidden, batch, stage_cache(model, dtype))
    return list(model.logits(hidden, torch.arange(len(hidden))).split(lengths.tolist()))


def prompt_batch() -> RaggedBatch:
    positions = torch.arange(len(PROMPT))
    return RaggedBatch(
        positions=positions.int(),
        slots=positions,
        query_start=torch.tensor([0, len(PROMPT)], dtype=torch.int32),
        context_lens=torch.tensor([len(PROMPT)], dtype=torch.int32),
        block_tables=torch.tensor([[0]], dtype=torch.int32),
    )


def stage_cache(model: LlamaForCausalLM, dtype: torch.dtype) -> Tensor:
    return torch.zeros(model.kv_cache_shape(8, 16), dtype=dtype)
