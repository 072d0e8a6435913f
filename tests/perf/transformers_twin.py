"""Transformers' model with the tensors that we load: the judge of exactness, and a baseline."""

import torch
from transformers import LlamaConfig, PreTrainedModel, Qwen2Config
from transformers import LlamaForCausalLM as TransformersLlama
from transformers import Qwen2ForCausalLM as TransformersQwen2

from fabric.models.config import ModelConfig
from fabric.models.gguf import GgufCheckpoint
from fabric.models.sources import LocalModel

TWINS = {
    "LlamaForCausalLM": (TransformersLlama, LlamaConfig),
    "Qwen2ForCausalLM": (TransformersQwen2, Qwen2Config),
}


def twin_of(local: LocalModel, config: ModelConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Build it from a GGUF file."""
    twin, twin_config = TWINS[config.architecture]
    with torch.device("meta"):
        model = twin(
            twin_config(
                vocab_size=config.vocab_size,
                hidden_size=config.hidden_size,
                intermediate_size=config.intermediate_size,
                num_hidden_layers=config.num_layers,
                num_attention_heads=config.num_heads,
                num_key_value_heads=config.num_kv_heads,
                max_position_embeddings=config.max_position_embeddings,
                rms_norm_eps=config.rms_norm_eps,
                rope_theta=config.rope.theta,
                tie_word_embeddings=config.tie_word_embeddings,
                attn_implementation="eager" if dtype is torch.float32 else "sdpa",
            )
        )
    checkpoint = GgufCheckpoint(local.path)
    state = {name: checkpoint.read(name).to(dtype) for name in checkpoint.names()}
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, assign=True)
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    checkpoint.close()
    return model.eval()
