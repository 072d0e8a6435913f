"""What tests of models share: tiny checkpoints, and a way to run a model on one sequence."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from fabric.engine.vocab_parallel import VocabShard
from fabric.models.checkpoint import ALL
from fabric.models.config import ModelConfig
from fabric.models.llama_weights import weights_of
from fabric.models.model import CausalModel
from kernels.ops import RaggedBatch

TINY = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
TINY_QWEN2 = TINY | {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
}


class DictCheckpoint:
    """A checkpoint in memory."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors

    def names(self) -> frozenset[str]:
        return frozenset(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def read(self, name: str, rows: slice = ALL, columns: slice = ALL) -> Tensor:
        return self._tensors[name][rows] if columns == ALL else self._tensors[name][rows, columns]

    def close(self) -> None:
        pass


def random_tensors(config: ModelConfig, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    top, layers = weights_of(config)
    weights = [*top.values(), *(weight for layer in layers for weight in layer.values())]
    return {
        part.name: torch.randn(part.shape, generator=generator) * 0.2
        for weight in weights
        for part in weight.parts
    }


def save_folder(folder: Path, raw: dict[str, object], tensors: dict[str, Tensor]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw))
    save_file(tensors, folder / "model.safetensors")
    return folder


class OneSequence:
    """Runs a model on a single sequence, in as many forward passes as one likes.

    The model may be a rank's stages, one after the other; logits are those of its tokens.
    """

    def __init__(
        self,
        model: CausalModel | Sequence[CausalModel],
        dtype: torch.dtype,
        rows: list[int] | None = None,
    ) -> None:
        self._stages = model if isinstance(model, Sequence) else [model]
        self._rows = rows
        self._num_blocks = 16
        self._kv_caches = [
            torch.zeros(stage.kv_cache_shape(self._num_blocks, 16), dtype=dtype)
            for stage in self._stages
        ]
        self._num_computed = 0

    def logits(self, token_ids: list[int]) -> Tensor:
        """The logits after each of the next tokens, or after ``rows`` of them."""
        start, end = self._num_computed, self._num_computed + len(token_ids)
        positions = torch.arange(start, end)
        batch = RaggedBatch(
            positions=positions.int(),
            slots=positions,
            query_start=torch.tensor([0, len(token_ids)], dtype=torch.int32),
            context_lens=torch.tensor([end], dtype=torch.int32),
            block_tables=torch.arange(self._num_blocks, dtype=torch.int32)[None],
        )
        rows = range(len(token_ids)) if self._rows is None else self._rows
        self._num_computed = end
        hidden = self._stages[0].embed(torch.tensor(token_ids))
        for stage, kv_cache in zip(self._stages, self._kv_caches, strict=True):
            hidden = stage.forward(hidden, batch, kv_cache)
        return self._stages[-1].logits(hidden, torch.tensor(rows, dtype=torch.int64)).float()

    def greedy(
        self, prompt: list[int], num_tokens: int, vocab: VocabShard | None = None
    ) -> list[int]:
        """The likeliest next tokens; ``vocab`` says whose tokens the logits are, if not all."""
        last, output = prompt, []
        while len(output) < num_tokens:
            logits = self.logits(last)[-1:]
            last = (vocab or VocabShard.whole(logits.shape[1])).argmax(logits)
            output += last
        return output
