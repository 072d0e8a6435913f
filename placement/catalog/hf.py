"""Reads a model's sizes from the config.json of its checkpoint."""

import json
from collections.abc import Mapping
from pathlib import Path

from fabric.core.errors import ConfigError
from placement.shape import Bias, ModelShape

Raw = Mapping[str, object]

LLAMA_LIKES = ("llama", "mistral", "mixtral", "qwen2", "qwen3", "smollm3")
DTYPE_BITS = {"float32": 32, "bfloat16": 16, "float16": 16}
# Of a layer's weights, without their scales.
QUANTIZED_BITS = {"int8": 8, "int4": 4}


def shape_from_file(path: Path, name: str) -> ModelShape:
    """A model's sizes, from the config.json at a path.

    Args:
        path: The file.
        name: What the model is called.

    Raises:
        ConfigError: It can't be read, or :func:`shape_from_hf` refuses it.
    """
    try:
        tree = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: holds {type(tree).__name__}; an object is needed")
    return shape_from_hf(tree, name)


def shape_from_hf(config: Raw, name: str) -> ModelShape:
    """A model's sizes, from its config.json.

    Args:
        config: The file's content; ``model_type`` is opt, bloom or one that is built like Llama.
        name: What the model is called.

    Raises:
        ConfigError: A key is missing or wrong, or the model is of a kind that isn't known.
    """
    kind = config.get("model_type")
    if kind == "opt":
        return _opt(config, name)
    if kind == "bloom":
        return _bloom(config, name)
    if kind in LLAMA_LIKES:
        return _llama(config, name, str(kind))
    allowed = ", ".join((*LLAMA_LIKES, "opt", "bloom"))
    raise ConfigError(f"{name}: model_type is {kind!r}; known are {allowed}")


def _llama(raw: Raw, name: str, kind: str) -> ModelShape:
    num_heads = _int(raw, name, "num_attention_heads")
    hidden_size = _int(raw, name, "hidden_size")
    bias: Bias = "qkv" if kind == "qwen2" or raw.get("attention_bias") else "none"
    return ModelShape(
        name=name,
        num_layers=_int(raw, name, "num_hidden_layers"),
        hidden_size=hidden_size,
        intermediate_size=_int(raw, name, "intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=_int(raw, name, "num_key_value_heads", num_heads),
        head_dim=_int(raw, name, "head_dim", hidden_size // num_heads),
        vocab_size=_int(raw, name, "vocab_size"),
        max_model_len=_int(raw, name, "max_position_embeddings", 2048),
        is_tied=bool(raw.get("tie_word_embeddings", False)),
        num_experts=_int(raw, name, "num_local_experts", 1),
        num_active_experts=_int(raw, name, "num_experts_per_tok", 1),
        weight_bits=_bits(raw, name),
        kv_bits=_bits(raw, name),
        bias=bias,
        has_qk_norm=kind == "qwen3",
    )


def _opt(raw: Raw, name: str) -> ModelShape:
    num_heads = _int(raw, name, "num_attention_heads")
    hidden_size = _int(raw, name, "hidden_size")
    if _int(raw, name, "word_embed_proj_dim", hidden_size) != hidden_size:
        width = raw["word_embed_proj_dim"]
        raise ConfigError(f"{name}: word_embed_proj_dim is {width}; only {hidden_size} is known")
    positions = _int(raw, name, "max_position_embeddings", 2048)
    return ModelShape(
        name=name,
        num_layers=_int(raw, name, "num_hidden_layers"),
        hidden_size=hidden_size,
        intermediate_size=_int(raw, name, "ffn_dim"),
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=hidden_size // num_heads,
        vocab_size=_int(raw, name, "vocab_size"),
        max_model_len=positions,
        is_gated=False,
        is_tied=bool(raw.get("tie_word_embeddings", True)),
        weight_bits=_bits(raw, name),
        kv_bits=_bits(raw, name),
        bias="all",
        # The first two are for padding.
        num_positions=positions + 2,
    )


def _bloom(raw: Raw, name: str) -> ModelShape:
    hidden_size = _int(raw, name, "hidden_size", _int(raw, name, "n_embed", 0))
    num_heads = _int(raw, name, "n_head", _int(raw, name, "num_attention_heads", 0))
    if not hidden_size or not num_heads:
        missing = "n_head" if hidden_size else "hidden_size"
        raise ConfigError(f"{name}: {missing} is missing; an integer is needed")
    return ModelShape(
        name=name,
        num_layers=_int(raw, name, "n_layer", _int(raw, name, "num_hidden_layers", 0)),
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=hidden_size // num_heads,
        vocab_size=_int(raw, name, "vocab_size"),
        max_model_len=_int(raw, name, "seq_length", 2048),
        is_gated=False,
        is_tied=True,
        weight_bits=_bits(raw, name),
        kv_bits=_bits(raw, name),
        bias="all",
        has_embedding_norm=True,
    )


def _int(raw: Raw, name: str, key: str, default: int | None = None) -> int:
    value = raw.get(key)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        said = "missing" if value is None else repr(value)
        raise ConfigError(f"{name}: {key} is {said}; a positive integer is needed")
    return value


def _bits(raw: Raw, name: str) -> int:
    dtype = str(raw.get("dtype") or raw.get("torch_dtype") or "float32")
    if dtype not in DTYPE_BITS:
        raise ConfigError(f"{name}: dtype is {dtype!r}; known are {', '.join(DTYPE_BITS)}")
    return DTYPE_BITS[dtype]
