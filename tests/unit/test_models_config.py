import pytest

from fabric.core.errors import CheckpointError
from fabric.models.config import ModelConfig
from fabric.models.rope_config import RopeScaling
from tests.unit.tiny_models import TINY

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
GGUF: dict[str, object] = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.context_length": 128,
    "llama.embedding_length": 48,
    "llama.feed_forward_length": 80,
    "llama.attention.head_count": 6,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 10000.0,
    "tokenizer.ggml.tokens": ["a", "b", "c"],
}


def test_head_dim_and_kv_heads_follow_from_the_rest_when_absent():
    raw = {key: value for key, value in TINY.items() if key != "num_key_value_heads"}
    config = ModelConfig.from_hf(raw)
    assert (config.head_dim, config.num_kv_heads) == (8, 6)


def test_old_and_new_spelling_of_rope_scaling_mean_the_same():
    old = ModelConfig.from_hf(TINY | {"rope_theta": 5e5, "rope_scaling": LLAMA3})
    new = ModelConfig.from_hf(
        TINY | {"rope_theta": None, "rope_parameters": LLAMA3 | {"rope_theta": 5e5}}
    )
    assert old.rope == new.rope
    assert (old.rope.scaling, old.rope.theta, old.rope.factor) == (RopeScaling.LLAMA3, 5e5, 8.0)


def test_rope_scaling_accepts_the_key_type():
    config = ModelConfig.from_hf(TINY | {"rope_scaling": {"type": "linear", "factor": 2}})
    assert (config.rope.scaling, config.rope.factor) == (RopeScaling.LINEAR, 2.0)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rope_scaling": {"rope_type": "yarn"}}, "yarn"),
        ({"rope_scaling": 3}, "rope_scaling"),
        ({"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}}, "high_freq_factor"),
        ({"rope_theta": "big"}, "big"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"hidden_size": None}, "hidden_size"),
        ({"vocab_size": "many"}, "vocab_size"),
        ({"num_attention_heads": 0}, "num_heads"),
        ({"num_key_value_heads": 4}, "num_kv_heads"),
        ({"head_dim": 7}, "head_dim"),
        ({"rms_norm_eps": -1}, "rms_norm_eps"),
        ({"torch_dtype": "int8"}, "int8"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"use_sliding_window": True}, "use_sliding_window"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(change: dict[str, object], named: str):
    with pytest.raises(CheckpointError, match=named):
        ModelConfig.from_hf(TINY | change)


def test_gguf_metadata_gives_the_same_sizes():
    config = ModelConfig.from_gguf(GGUF, is_tied=True)
    plain = ModelConfig.from_hf(TINY)
    assert (config.vocab_size, config.tie_word_embeddings) == (3, True)
    for name in ("hidden_size", "intermediate_size", "num_layers", "num_kv_heads", "head_dim"):
        assert getattr(config, name) == getattr(plain, name)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"llama.rope.scaling.type": "yarn"}, "yarn"),
        ({"llama.rope.dimension_count": 4}, "dimension_count"),
        ({"llama.block_count": None}, "block_count"),
    ],
)
def test_gguf_metadata_that_cannot_be_run_is_refused_by_name(change: dict[str, object], named: str):
    with pytest.raises(CheckpointError, match=named):
        ModelConfig.from_gguf(GGUF | change, is_tied=True)
