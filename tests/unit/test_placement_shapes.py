import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from fabric.core.errors import ConfigError
from fabric.core.plan import ParallelConfig
from fabric.models.config import ModelConfig
from fabric.models.llama_weights import weights_of
from fabric.models.shard import shard_of
from placement.catalog import shape, shape_from_hf, shape_names
from placement.cost.sizes import (
    is_divisible,
    kv_token_bytes,
    max_context,
    max_tokens,
    weight_bytes,
)

GIB = 1 << 30

# Published with the checkpoints, or counted in them.
NUM_PARAMETERS = {
    "smollm2-135m": 134_515_008,
    "qwen2.5-0.5b": 494_032_768,
    "qwen3-32b": 32_762_123_264,
    "llama-7b": 6_738_415_616,
    "llama-30b": 32_528_943_616,
    "llama-65b": 65_285_660_672,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "mixtral-8x7b": 46_702_792_704,
    "opt-125m": 125_239_296,
    "bloom-7b1": 7_069_016_064,
    "bloom-176b": 176_247_271_424,
}

KV_TOKEN_BYTES = {
    "llama-3-8b": 131_072,
    "llama-2-70b": 327_680,
    "llama-2-7b": 524_288,
    # 96 layers of 96 heads of 128: 4.5 MiB, as in FastServe's and vLLM's examples of OPT.
    "opt-175b": 4_718_592,
    # One KV head of 256 for 48 query heads: 118 x 2 x 256 x 2.
    "palm-540b": 120_832,
}


@pytest.mark.parametrize("name", NUM_PARAMETERS)
def test_parameters_are_counted_as_published(name: str) -> None:
    assert shape(name).num_parameters == NUM_PARAMETERS[name]


@pytest.mark.parametrize(("name", "billions"), [("opt-175b", 174.6), ("palm-540b", 540.4)])
def test_parameters_of_closed_models_are_near_what_their_papers_say(
    name: str, billions: float
) -> None:
    assert shape(name).num_parameters / 1e9 == pytest.approx(billions, rel=1e-3)


@pytest.mark.parametrize("name", KV_TOKEN_BYTES)
def test_kv_of_a_token_counts_shared_heads_once(name: str) -> None:
    known = shape(name)
    assert known.kv_token_bytes == KV_TOKEN_BYTES[name]
    assert kv_token_bytes(known, ParallelConfig()) == (KV_TOKEN_BYTES[name],)


@pytest.mark.parametrize("name", shape_names())
def test_weights_on_one_device_are_all_parameters(name: str) -> None:
    known = shape(name)
    assert weight_bytes(known, ParallelConfig()) == (2 * known.num_parameters,)


def test_active_parameters_leave_out_idle_experts() -> None:
    known = shape("mixtral-8x7b")
    assert known.num_active_parameters == 46_702_792_704 - 32 * 6 * 3 * 4096 * 14336


def test_two_ranks_halve_matrices_and_repeat_norms() -> None:
    known = shape("llama-3-8b")
    norm_bytes = (2 * 32 + 1) * 4096 * 2
    (whole,) = weight_bytes(known, ParallelConfig(tensor=1))
    (half,) = weight_bytes(known, ParallelConfig(tensor=2))
    assert 2 * (half - norm_bytes) == whole - norm_bytes


@pytest.mark.parametrize(("tensor", "heads"), [(1, 8), (2, 4), (8, 1), (16, 1), (64, 1)])
def test_ranks_beyond_the_kv_heads_repeat_one(tensor: int, heads: int) -> None:
    known = shape("llama-3-70b")
    assert kv_token_bytes(known, ParallelConfig(tensor=tensor)) == (80 * 2 * heads * 128 * 2,)


def test_the_only_kv_head_of_palm_is_on_every_device() -> None:
    known = shape("palm-540b")
    assert kv_token_bytes(known, ParallelConfig(tensor=48)) == (120_832,)


def test_left_over_layers_go_to_inner_stages() -> None:
    known = shape("llama-3-8b")
    stages = kv_token_bytes(known, ParallelConfig(pipeline=5))
    layer_bytes = 2 * 8 * 128 * 2
    assert [stage // layer_bytes for stage in stages] == [6, 7, 7, 6, 6]


def test_a_tied_head_is_on_the_last_stage_too() -> None:
    known = shape("smollm2-135m")
    embedding_bytes = 49152 * 576 * 2
    stages = weight_bytes(known, ParallelConfig(pipeline=2))
    assert sum(stages) == 2 * known.num_parameters + embedding_bytes


def test_an_untied_head_is_only_on_the_last_stage() -> None:
    known = shape("llama-3-8b")
    assert sum(weight_bytes(known, ParallelConfig(pipeline=4))) == 2 * known.num_parameters


CUTS = [ParallelConfig(1, 1), ParallelConfig(2, 1), ParallelConfig(1, 2), ParallelConfig(2, 8)]


@pytest.mark.parametrize("parallel", CUTS)
def test_kv_bytes_are_those_of_the_fabrics_own_shards(parallel: ParallelConfig, hf: dict) -> None:
    config = ModelConfig.from_hf(hf)
    expected = [
        shard_of(config, parallel, stage, 0).kv_bytes_per_token(config, 4)
        for stage in range(parallel.pipeline)
    ]
    assert list(kv_token_bytes(shape_from_hf(hf, "stories"), parallel)) == expected


@pytest.mark.parametrize("parallel", CUTS)
@pytest.mark.parametrize("is_tied", [True, False])
def test_weight_bytes_are_those_of_the_fabrics_own_shards(
    parallel: ParallelConfig, is_tied: bool, hf: dict
) -> None:
    hf["tie_word_embeddings"] = is_tied
    config = ModelConfig.from_hf(hf)
    expected = []
    for stage in range(parallel.pipeline):
        ranks_bytes = []
        for rank in range(parallel.tensor):
            top, layers = weights_of(config, shard_of(config, parallel, stage, rank))
            weights = [weight for group in (top, *layers) for weight in group.values()]
            ranks_bytes.append(4 * sum(math.prod(weight.shape) for weight in weights))
        expected.append(max(ranks_bytes))
    assert list(weight_bytes(shape_from_hf(hf, "stories"), parallel)) == expected


def test_more_ranks_than_heads_do_not_divide() -> None:
    known = shape("smollm2-135m")
    assert [n for n in range(1, 10) if is_divisible(known, ParallelConfig(tensor=n))] == [1, 3, 9]
    assert not is_divisible(known, ParallelConfig(pipeline=31))


def test_context_fills_what_weights_leave_to_the_byte() -> None:
    known = shape("llama-3.1-8b")
    weights = 2 * 8_030_261_248
    room = 1000 * 131_072
    assert max_context(known, ParallelConfig(), weights + room) == 1000
    assert max_context(known, ParallelConfig(), weights + room - 1) == 999
    assert max_context(known, ParallelConfig(), weights - 1) == 0


def test_context_ends_at_the_models_own() -> None:
    assert max_context(shape("llama-3-8b"), ParallelConfig(), 80 * GIB) == 8192


def test_tokens_come_in_whole_blocks() -> None:
    known = shape("llama-3-8b")
    memory = 2 * 8_030_261_248 + 1000 * 131_072
    assert max_tokens(known, ParallelConfig(), memory, block_size=16) == 992


def test_the_tightest_stage_limits_the_context() -> None:
    known = shape("llama-3-8b")
    parallel = ParallelConfig(pipeline=2)
    weights = weight_bytes(known, parallel)
    memory = max(weights) + 500 * 65_536
    assert max_tokens(known, parallel, memory) == 500


def test_fewer_bits_shrink_layers_and_leave_the_head() -> None:
    wide, narrow = shape("llama-3-8b"), shape("llama-3-8b", weight_bits=8)
    matrices = 32 * wide.layer_matrices
    (saved,) = (
        a - b
        for a, b in zip(
            weight_bytes(wide, ParallelConfig()),
            weight_bytes(narrow, ParallelConfig()),
            strict=True,
        )
    )
    assert saved == matrices


def test_a_configuration_file_gives_the_catalogs_shape(hf: dict) -> None:
    read = shape_from_hf(hf, "stories260k")
    assert read.num_parameters == shape("stories260k").num_parameters
    assert (read.weight_bits, read.kv_bits) == (32, 32)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (
            {
                "model_type": "opt",
                "hidden_size": 768,
                "num_hidden_layers": 12,
                "num_attention_heads": 12,
                "ffn_dim": 3072,
                "vocab_size": 50272,
                "torch_dtype": "float16",
            },
            "opt-125m",
        ),
        (
            {
                "model_type": "bloom",
                "n_embed": 4096,
                "n_layer": 30,
                "n_head": 32,
                "vocab_size": 250880,
                "torch_dtype": "float16",
            },
            "bloom-7b1",
        ),
        (
            {
                "model_type": "qwen2",
                "hidden_size": 896,
                "num_hidden_layers": 24,
                "num_attention_heads": 14,
                "num_key_value_heads": 2,
                "intermediate_size": 4864,
                "vocab_size": 151936,
                "max_position_embeddings": 32768,
                "tie_word_embeddings": True,
                "torch_dtype": "bfloat16",
            },
            "qwen2.5-0.5b",
        ),
    ],
)
def test_configuration_files_of_other_kinds_are_read(config: dict, name: str) -> None:
    assert shape_from_hf(config, name) == shape(name)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_hidden_layers": None}, "num_hidden_layers is missing"),
        ({"hidden_size": "64"}, "hidden_size is '64'"),
        ({"model_type": "mamba"}, "model_type is 'mamba'; known are llama"),
        ({"torch_dtype": "int8"}, "dtype is 'int8'"),
    ],
)
def test_a_wrong_key_of_a_configuration_file_is_named(hf: dict, change: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        shape_from_hf(hf | change, "stories")


def test_an_unknown_model_is_answered_with_similar_ones() -> None:
    with pytest.raises(ConfigError, match="llama-3-8b"):
        shape("llama3-8b")


def test_more_active_experts_than_there_are_is_an_error() -> None:
    with pytest.raises(ConfigError, match="num_active_experts is 9"):
        replace(shape("mixtral-8x7b"), num_active_experts=9)


def test_bytes_of_encoders_are_those_that_were_measured(data_path: Path) -> None:
    path = data_path / "alpaserve/profiling_szu_motivation.json"
    if not path.exists():
        pytest.skip(f"no profile at {path}")
    for name, rows in json.loads(path.read_text()).items():
        measured = [sum(row["weight_mem"]) * row["op"] for row in rows]
        assert weight_bytes(shape(name), ParallelConfig())[0] == pytest.approx(
            min(measured), rel=0.01
        )


@pytest.fixture
def hf() -> dict:
    return {
        "model_type": "llama",
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 172,
        "num_hidden_layers": 5,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "architectures": ["LlamaForCausalLM"],
    }
