import pytest

from fabric.core.errors import ConfigError
from fabric.core.plan import ParallelConfig
from fabric.models.config import ModelConfig
from fabric.models.shard import Shard, even_layer_split, shard_of, whole_model
from tests.unit.tiny_models import TINY

SMOLLM2 = TINY | {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}
LLAMA2_70B = TINY | {
    "vocab_size": 32000,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
}


def shards(raw: dict[str, object], tensor: int, pipeline: int = 1) -> list[Shard]:
    config, parallel = ModelConfig.from_hf(raw), ParallelConfig(pipeline, tensor)
    return [
        shard_of(config, parallel, stage, rank)
        for stage in range(pipeline)
        for rank in range(tensor)
    ]


@pytest.mark.parametrize(
    ("num_layers", "num_stages", "expected"),
    [
        (30, 1, (30,)),
        (30, 2, (15, 15)),
        (5, 2, (3, 2)),
        (5, 3, (2, 2, 1)),
        (4, 3, (1, 2, 1)),
        (30, 4, (7, 8, 8, 7)),
        (3, 3, (1, 1, 1)),
    ],
)
def test_layers_are_split_evenly_with_fewer_at_the_ends(
    num_layers: int, num_stages: int, expected: tuple[int, ...]
):
    assert even_layer_split(num_layers, num_stages) == expected


def test_stages_have_all_layers_once_and_only_the_ends_embed_and_make_logits():
    stages = shards(SMOLLM2, tensor=1, pipeline=4)
    assert [layer for stage in stages for layer in stage.layers] == list(range(30))
    assert [stage.is_first for stage in stages] == [True, False, False, False]
    assert [stage.is_last for stage in stages] == [False, False, False, True]


@pytest.mark.parametrize("tensor", [1, 3, 9])
def test_ranks_share_heads_features_and_vocabulary_without_gaps(tensor: int):
    config = ModelConfig.from_hf(SMOLLM2 | {"intermediate_size": 1537, "vocab_size": 49153})
    ranks = shards(SMOLLM2, tensor)
    for share, total in (
        (Shard.heads, 9),
        (Shard.intermediate, 1537),
        (Shard.vocabulary, 49153),
    ):
        parts = [share(rank, config) for rank in ranks]
        assert [index for part in parts for index in part] == list(range(total))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("tensor", [1, 2, 8, 16, 64])
def test_query_heads_have_their_kv_heads_on_the_same_rank(tensor: int):
    config = ModelConfig.from_hf(LLAMA2_70B)
    for shard in shards(LLAMA2_70B, tensor):
        needed = {head // 8 for head in shard.heads(config)}
        assert set(shard.kv_heads(config)) == needed


def test_repeated_kv_heads_are_counted_in_bytes():
    config = ModelConfig.from_hf(LLAMA2_70B)
    whole = whole_model(config).kv_bytes_per_token(config, 2)
    assert whole == 80 * 2 * 8 * 128 * 2
    for tensor, expected in ((8, whole), (16, 2 * whole), (64, 8 * whole)):
        kept = sum(s.kv_bytes_per_token(config, 2) for s in shards(LLAMA2_70B, tensor))
        assert kept == expected
    assert sum(s.kv_bytes_per_token(config, 2) for s in shards(LLAMA2_70B, 2, 3)) == whole


@pytest.mark.parametrize("tensor", [2, 4, 6, 18])
def test_heads_that_cannot_be_shared_are_named_with_what_can(tensor: int):
    with pytest.raises(ConfigError) as caught:
        shards(SMOLLM2, tensor)
    assert caught.value.message == (
        f"parallel.tensor is {tensor}; the model's 9 heads and 3 KV heads allow 1, 3, 9"
    )


def test_kv_heads_are_neither_cut_nor_repeated_unevenly():
    raw = TINY | {"num_attention_heads": 12, "num_key_value_heads": 4}
    with pytest.raises(ConfigError, match="12 heads and 4 KV heads allow 1, 2, 4, 12"):
        shards(raw, tensor=6)


def test_more_stages_than_layers_are_refused():
    with pytest.raises(ConfigError, match=r"parallel\.pipeline is 31; .* 30 layers allow 1 to 30"):
        shards(SMOLLM2, tensor=1, pipeline=31)


@pytest.mark.parametrize("split", [(30,), (10, 21), (0, 30), (31, -1)])
def test_a_layer_split_that_does_not_add_up_is_refused(split: tuple[int, ...]):
    config = ModelConfig.from_hf(SMOLLM2)
    with pytest.raises(ConfigError, match="2 positive numbers that add up to the model's 30"):
        shard_of(config, ParallelConfig(2, 1), 0, 0, split)
