"""Sizes of published models.

Sources: the config.json beside each checkpoint on huggingface.co; PaLM (Chowdhery et al., 2022),
table 1; the encoders of AlpaServe (Li et al., OSDI 2023), table 1, by the sizes that Alpa's
benchmarks give them, which agree with the bytes that were measured of them.
"""

import difflib
from dataclasses import replace
from typing import TypedDict

from fabric.core.errors import ConfigError
from placement.shape import Bias, ModelShape

Sizes = tuple[int, int, int, int, int]
"""Layers, hidden size, intermediate size, heads, KV heads."""


class Family(TypedDict, total=False):
    """What models of a family have in common."""

    vocab_size: int
    max_model_len: int
    head_dim: int
    is_gated: bool
    is_tied: bool
    bias: Bias
    has_qk_norm: bool
    has_embedding_norm: bool
    num_positions: int
    num_layer_norms: int
    num_experts: int
    num_active_experts: int


LLAMA: Family = {"vocab_size": 32000, "max_model_len": 2048}
LLAMA2: Family = {"vocab_size": 32000, "max_model_len": 4096}
LLAMA3: Family = {"vocab_size": 128256, "max_model_len": 8192}
LLAMA31: Family = {"vocab_size": 128256, "max_model_len": 131072}
LLAMA32: Family = {**LLAMA31, "is_tied": True}
SMOLLM2: Family = {"vocab_size": 49152, "max_model_len": 8192, "is_tied": True}
STORIES: Family = {"vocab_size": 512, "max_model_len": 512, "is_tied": True}
MISTRAL: Family = {"vocab_size": 32000, "max_model_len": 32768}
MIXTRAL: Family = {**MISTRAL, "num_experts": 8, "num_active_experts": 2}
QWEN25: Family = {"vocab_size": 152064, "max_model_len": 32768, "bias": "qkv"}
QWEN25_SMALL: Family = {**QWEN25, "vocab_size": 151936, "is_tied": True}
QWEN3: Family = {
    "vocab_size": 151936,
    "max_model_len": 40960,
    "head_dim": 128,
    "has_qk_norm": True,
}
QWEN3_SMALL: Family = {**QWEN3, "is_tied": True}
OPT: Family = {
    "vocab_size": 50272,
    "max_model_len": 2048,
    "num_positions": 2050,
    "is_gated": False,
    "is_tied": True,
    "bias": "all",
}
BLOOM: Family = {
    "vocab_size": 250880,
    "max_model_len": 2048,
    "is_gated": False,
    "is_tied": True,
    "bias": "all",
    "has_embedding_norm": True,
}
PALM: Family = {
    "vocab_size": 256000,
    "max_model_len": 2048,
    "head_dim": 256,
    "is_tied": True,
    "num_layer_norms": 1,
}
BERT: Family = {
    "vocab_size": 51200,
    "max_model_len": 2048,
    "num_positions": 2048,
    "is_gated": False,
    "bias": "all",
}

MODELS: dict[str, tuple[Family, Sizes]] = {
    "stories260k": (STORIES, (5, 64, 172, 8, 4)),
    "smollm2-135m": (SMOLLM2, (30, 576, 1536, 9, 3)),
    "smollm2-360m": (SMOLLM2, (32, 960, 2560, 15, 5)),
    "smollm2-1.7b": (SMOLLM2, (24, 2048, 8192, 32, 32)),
    "llama-7b": (LLAMA, (32, 4096, 11008, 32, 32)),
    "llama-13b": (LLAMA, (40, 5120, 13824, 40, 40)),
    "llama-30b": (LLAMA, (60, 6656, 17920, 52, 52)),
    "llama-65b": (LLAMA, (80, 8192, 22016, 64, 64)),
    "llama-2-7b": (LLAMA2, (32, 4096, 11008, 32, 32)),
    "llama-2-13b": (LLAMA2, (40, 5120, 13824, 40, 40)),
    "llama-2-70b": (LLAMA2, (80, 8192, 28672, 64, 8)),
    "llama-3-8b": (LLAMA3, (32, 4096, 14336, 32, 8)),
    "llama-3-70b": (LLAMA3, (80, 8192, 28672, 64, 8)),
    "llama-3.1-8b": (LLAMA31, (32, 4096, 14336, 32, 8)),
    "llama-3.1-70b": (LLAMA31, (80, 8192, 28672, 64, 8)),
    "llama-3.1-405b": (LLAMA31, (126, 16384, 53248, 128, 8)),
    "llama-3.2-1b": (LLAMA32, (16, 2048, 8192, 32, 8)),
    "llama-3.2-3b": (LLAMA32, (28, 3072, 8192, 24, 8)),
    "mistral-7b": (MISTRAL, (32, 4096, 14336, 32, 8)),
    "mixtral-8x7b": (MIXTRAL, (32, 4096, 14336, 32, 8)),
    "qwen2.5-0.5b": (QWEN25_SMALL, (24, 896, 4864, 14, 2)),
    "qwen2.5-1.5b": (QWEN25_SMALL, (28, 1536, 8960, 12, 2)),
    "qwen2.5-3b": (QWEN25_SMALL, (36, 2048, 11008, 16, 2)),
    "qwen2.5-7b": (QWEN25, (28, 3584, 18944, 28, 4)),
    "qwen2.5-14b": (QWEN25, (48, 5120, 13824, 40, 8)),
    "qwen2.5-32b": (QWEN25, (64, 5120, 27648, 40, 8)),
    "qwen2.5-72b": (QWEN25, (80, 8192, 29568, 64, 8)),
    "qwen3-0.6b": (QWEN3_SMALL, (28, 1024, 3072, 16, 8)),
    "qwen3-1.7b": (QWEN3_SMALL, (28, 2048, 6144, 16, 8)),
    "qwen3-4b": (QWEN3_SMALL, (36, 2560, 9728, 32, 8)),
    "qwen3-8b": (QWEN3, (36, 4096, 12288, 32, 8)),
    "qwen3-14b": (QWEN3, (40, 5120, 17408, 40, 8)),
    "qwen3-32b": (QWEN3, (64, 5120, 25600, 64, 8)),
    "opt-125m": (OPT, (12, 768, 3072, 12, 12)),
    "opt-1.3b": (OPT, (24, 2048, 8192, 32, 32)),
    "opt-2.7b": (OPT, (32, 2560, 10240, 32, 32)),
    "opt-6.7b": (OPT, (32, 4096, 16384, 32, 32)),
    "opt-13b": (OPT, (40, 5120, 20480, 40, 40)),
    "opt-30b": (OPT, (48, 7168, 28672, 56, 56)),
    "opt-66b": (OPT, (64, 9216, 36864, 72, 72)),
    "opt-175b": (OPT, (96, 12288, 49152, 96, 96)),
    "bloom-7b1": (BLOOM, (30, 4096, 16384, 32, 32)),
    "bloom-176b": (BLOOM, (70, 14336, 57344, 112, 112)),
    "palm-8b": (PALM, (32, 4096, 16384, 16, 1)),
    "palm-62b": (PALM, (64, 8192, 32768, 32, 1)),
    "palm-540b": (PALM, (118, 18432, 73728, 48, 1)),
    "bert-1.3b": (BERT, (24, 2048, 8192, 32, 32)),
    "bert-2.6b": (BERT, (32, 2560, 10240, 32, 32)),
    "bert-6.7b": (BERT, (32, 4096, 16384, 32, 32)),
    "bert-15.4b": (BERT, (48, 5120, 20480, 40, 40)),
}


def shape(name: str, weight_bits: int = 16, kv_bits: int = 16) -> ModelShape:
    """A published model, by its name in any case.

    Raises:
        ConfigError: There is no such model; names similar ones.
    """
    found = MODELS.get(name.lower())
    if found is None:
        near = difflib.get_close_matches(name.lower(), MODELS, n=5, cutoff=0.3)
        raise ConfigError(f"no model is called {name!r}; similar: {', '.join(near) or 'none'}")
    family, sizes = found
    return replace(_shape(name.lower(), family, sizes), weight_bits=weight_bits, kv_bits=kv_bits)


def shape_names() -> tuple[str, ...]:
    """The models that are known."""
    return tuple(MODELS)


def _shape(name: str, family: Family, sizes: Sizes) -> ModelShape:
    num_layers, hidden_size, intermediate_size, num_heads, num_kv_heads = sizes
    with_head_dim: Family = {"head_dim": hidden_size // num_heads, **family}
    return ModelShape(
        name=name,
        num_layers=num_layers,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        **with_head_dim,
    )
