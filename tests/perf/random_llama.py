"""Writes Llama checkpoints of any shape with random weights: they cost what trained ones cost."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE

from fabric.models.config import ModelConfig
from fabric.models.llama_weights import weights_of

NUM_RANDOM = 2**20


@dataclass(frozen=True)
class Shape:
    """Sizes of a model; the defaults are those of TinyLlama-1.1B."""

    num_layers: int = 22
    hidden_size: int = 2048
    intermediate_size: int = 5632
    num_heads: int = 32
    num_kv_heads: int = 4
    vocab_size: int = 32000

    def config(self) -> dict[str, object]:
        """A Hugging Face config.json."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
        }


SMOKE = Shape(2, 256, 704, 8, 4, 2000)


def write_checkpoint(folder: Path, shape: Shape, seed: int) -> int:
    """Write a folder that loads like one from a hub; return the number of parameters."""
    raw = shape.config()
    (folder / "config.json").write_text(json.dumps(raw))
    vocabulary = Tokenizer(BPE({f"<{i}>": i for i in range(shape.vocab_size)}, []))
    vocabulary.decoder = decoders.ByteLevel()
    vocabulary.save(str(folder / "tokenizer.json"))
    top, layers = weights_of(ModelConfig.from_hf(raw))
    weights = [*top.values(), *(weight for layer in layers for weight in layer.values())]
    # Drawing each of a billion numbers would take longer than the measurement.
    drawn = torch.randn(NUM_RANDOM, generator=torch.Generator().manual_seed(seed)) * 0.02
    drawn = drawn.bfloat16()
    tensors = {
        part.name: drawn.repeat(-(-torch.Size(part.shape).numel() // NUM_RANDOM))[
            : torch.Size(part.shape).numel()
        ].view(part.shape)
        for weight in weights
        for part in weight.parts
    }
    save_file(tensors, folder / "model.safetensors")
    return sum(tensor.numel() for tensor in tensors.values())
