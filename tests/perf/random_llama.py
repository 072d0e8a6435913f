"""Writes Llama checkpoints of any shape with random weights: they cost what trained ones cost."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from torch import Tensor

from fabric.models.config import ModelConfig
from fabric.models.llama_weights import weights_of
from fabric.models.pieces import SPACE

NUM_RANDOM = 2**20
# Where each tensor begins in what is drawn is so far from the last: none equals another, which some
# engines would keep, and so read, only once.
STRIDE = 104_729
SPECIAL = ("<unk>", "<s>", "</s>")
NUM_BYTES = 256


@dataclass(frozen=True)
class Shape:
    """Sizes of a model; the defaults are those of TinyLlama-1.1B."""

    num_layers: int = 22
    hidden_size: int = 2048
    intermediate_size: int = 5632
    num_heads: int = 32
    num_kv_heads: int = 4
    vocab_size: int = 32000
    max_position_embeddings: int = 2048

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
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "torch_dtype": "bfloat16",
        }


SMOKE = Shape(2, 256, 704, 8, 4, 2000)


def write_checkpoint(folder: Path, shape: Shape, seed: int) -> int:
    """Write a folder that loads like one from a hub; return the number of parameters."""
    raw = shape.config()
    (folder / "config.json").write_text(json.dumps(raw))
    top, layers = weights_of(ModelConfig.from_hf(raw))
    weights = [*top.values(), *(weight for layer in layers for weight in layer.values())]
    # Drawing each of a billion numbers would take longer than the measurement.
    drawn = torch.randn(NUM_RANDOM, generator=torch.Generator().manual_seed(seed)) * 0.02
    drawn = drawn.bfloat16()
    parts = [part for weight in weights for part in weight.parts]
    tensors = {
        part.name: _tensor(part.shape, drawn.roll(-STRIDE * number))
        for number, part in enumerate(parts)
    }
    # Transformers loads no file that doesn't name its format.
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _write_tokenizer(folder, shape)
    return sum(tensor.numel() for tensor in tensors.values())


def _tensor(shape: tuple[int, ...], drawn: Tensor) -> Tensor:
    if len(shape) == 1:  # A norm: its scale keeps activations in the range of trained models.
        return torch.ones(shape, dtype=torch.bfloat16)
    num_elements = torch.Size(shape).numel()
    return drawn.repeat(-(-num_elements // NUM_RANDOM))[:num_elements].view(shape)


def _write_tokenizer(folder: Path, shape: Shape) -> None:
    """A vocabulary like SentencePiece's, with bytes to fall back on, that other engines read."""
    pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(NUM_BYTES))]
    pieces += [f"{SPACE}t{i}" for i in range(len(pieces), shape.vocab_size)]
    vocabulary = Tokenizer(
        BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)
    )
    vocabulary.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    )
    vocabulary.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    vocabulary.add_special_tokens([AddedToken(piece, normalized=False) for piece in SPECIAL])
    vocabulary.save(str(folder / "tokenizer.json"))
    names = {"unk_token": SPECIAL[0], "bos_token": SPECIAL[1], "eos_token": SPECIAL[2]}
    settings = names | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": shape.max_position_embeddings,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").write_text(json.dumps(names))
