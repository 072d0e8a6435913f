"""Models with random weights: they cost what trained ones of their shape cost, and say nothing.

They are for measuring, where a checkpoint can't be had or would take long to fetch.
"""

import json
import zlib
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from torch import Tensor

from fabric.core.errors import SourceError
from fabric.models.checkpoint import ALL
from fabric.models.config import ModelConfig
from fabric.models.registry import parameter_groups
from fabric.models.shard import whole_model

# A prime, so that rows of no matrix repeat.
_NUM_DRAWN = 1048573
_SCALE = 0.02
_SEED = 0

# Layers, hidden and intermediate size, heads, KV heads, vocabulary, longest sequence, rope's theta.
_SHAPES = {
    "llama-3-8b": (32, 4096, 14336, 32, 8, 128256, 8192, 500000.0),
    "llama-3.2-1b": (16, 2048, 8192, 32, 8, 128256, 8192, 500000.0),
    "tinyllama-1.1b": (22, 2048, 5632, 32, 4, 32000, 2048, 10000.0),
    "llama-160m": (12, 768, 3072, 12, 12, 32000, 2048, 10000.0),
    "tiny": (2, 64, 176, 4, 2, 512, 512, 10000.0),
}


def random_folder(name: str, cache_dir: Path) -> Path:
    """A folder with what a model of a known shape has beside its weights.

    Args:
        name: A shape's name, or a folder that has it all.
        cache_dir: Gets the folder of a known shape.

    Raises:
        SourceError: There is neither; names the shapes.
    """
    folder = Path(name).expanduser().absolute()
    if name not in _SHAPES:
        if not (folder / "config.json").is_file():
            known = ", ".join(_SHAPES)
            raise SourceError(f"random:{name}: give a folder with config.json, or {known}")
        return folder
    folder = cache_dir / "random" / name
    if not (folder / "config.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder, name)
    return folder


class RandomCheckpoint:
    """A checkpoint that has just the tensors that a model needs, and draws them as they are read.

    A name always gets the same numbers.
    """

    def __init__(self, config: ModelConfig) -> None:
        self._shapes = {
            part.name: part.shape
            for group in parameter_groups(config, whole_model(config))
            for parameter in group
            for part in parameter.weight.parts
        }
        generator = torch.Generator().manual_seed(_SEED)
        self._drawn = torch.randn(_NUM_DRAWN, generator=generator).bfloat16()

    def names(self) -> frozenset[str]:
        """See Checkpoint."""
        return frozenset(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """See Checkpoint."""
        return self._shapes[name]

    def read(self, name: str, rows: slice = ALL, columns: slice = ALL) -> Tensor:
        """See Checkpoint; vectors, which are norms for the most part, are near 1."""
        shape = self._shapes[name]
        count = torch.Size(shape).numel()
        drawn = torch.roll(self._drawn, zlib.crc32(name.encode()) % _NUM_DRAWN) * _SCALE
        if len(shape) == 1:
            drawn += 1.0
        whole = drawn.repeat(-(-count // _NUM_DRAWN))[:count].view(shape)
        return whole[rows] if columns == ALL else whole[rows, columns]

    def close(self) -> None:
        """Do nothing: there are no files."""


def _write(folder: Path, name: str) -> None:
    layers, hidden, intermediate, heads, kv_heads, vocabulary, length, theta = _SHAPES[name]
    tokenizer = Tokenizer(BPE({f"<{i}>": i for i in range(vocabulary)}, []))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": length,
        "rms_norm_eps": 1e-5,
        "rope_theta": theta,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    # Last: it is what says that the folder is whole.
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
