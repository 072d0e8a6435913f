"""The Llama family: LLaMA, Llama 2 and 3, SmolLM2, Qwen2, and whatever has their shape.

Source: Touvron et al., 2023 (LLaMA; Llama 2); grouped queries: Ainslie et al., EMNLP 2023;
biases of queries, keys and values: Qwen2 (Yang et al., 2024), section 2.2.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fabric.models.checkpoint import Checkpoint
from fabric.models.config import ModelConfig
from fabric.models.layers import ColumnParallelLinear, RowParallelLinear, VocabParallelEmbedding
from fabric.models.llama_weights import HEAD, weights_of
from fabric.models.model import RankPart
from fabric.models.progress import Progress
from fabric.models.rope import cos_sin_table
from fabric.models.weights import Weight, check_weights
from kernels.ops import Backend, RaggedBatch


@dataclass(frozen=True, slots=True)
class LlamaLayer:
    """One decoder layer's parameters."""

    input_norm: Tensor
    qkv: ColumnParallelLinear
    output: RowParallelLinear
    mlp_norm: Tensor
    gate_up: ColumnParallelLinear
    down: RowParallelLinear


class LlamaForCausalLM:
    """A rank's part of a Llama decoder over paged KV, built from a backend's operations."""

    def __init__(
        self,
        config: ModelConfig,
        backend: Backend,
        dtype: torch.dtype,
        max_model_len: int | None = None,
        part: RankPart | None = None,
    ) -> None:
        """Prepare an empty model.

        Args:
            config: Its sizes.
            backend: Its operations.
            dtype: Of weights, activations and KV.
            max_model_len: Bounds positions; None: as many as the config allows.
            part: This rank's part; None: everything.
        """
        self.config = config
        part = part or RankPart.whole(config)
        self.shard = part.shard
        self._group = part.group
        self._backend = backend
        self._dtype = dtype
        self._num_heads = len(self.shard.heads(config))
        self._num_kv_heads = len(self.shard.kv_heads(config))
        self._scale = config.head_dim**-0.5
        self._cos_sin = cos_sin_table(
            config.rope, config.head_dim, max_model_len or config.max_position_embeddings
        )
        self._layers: list[LlamaLayer] = []
        self._embedding: VocabParallelEmbedding
        self._final_norm: Tensor
        self._head: ColumnParallelLinear

    def load_weights(self, checkpoint: Checkpoint, progress: Progress) -> int:
        """Take this rank's weights from the checkpoint, which must be whole.

        Parameters are read and packed one by one, so that the peak is the shard and one of them.

        Returns:
            The number of elements of all weights, other ranks' included.

        Raises:
            CheckpointError: Tensors are missing, unused, mis-shaped or unreadable.
        """
        num_parameters = self._check(checkpoint)
        top, layers = weights_of(self.config, self.shard)
        self._load_top(top, checkpoint)
        for done, layer in enumerate(layers):
            progress.update("load weights", done, len(layers))
            self._layers.append(self._load_layer(layer, checkpoint))
        progress.update("load weights", len(layers), len(layers))
        return num_parameters

    def _check(self, checkpoint: Checkpoint) -> int:
        top, layers = weights_of(self.config)
        weights = [*top.values(), *(weight for layer in layers for weight in layer.values())]
        spare = (HEAD,) if self.config.tie_word_embeddings else ()
        return check_weights(weights, checkpoint, spare)

    def _load_top(self, weights: dict[str, Weight], checkpoint: Checkpoint) -> None:
        tensors = {name: weight.read(checkpoint, self._dtype) for name, weight in weights.items()}
        if self.shard.is_first:
            vocabulary = self.shard.vocabulary(self.config)
            self._embedding = VocabParallelEmbedding(self._group, vocabulary, tensors["embedding"])
        if self.shard.is_last:
            self._final_norm = tensors["final_norm"]
            head = tensors["head" if "head" in tensors else "embedding"]
            self._head = ColumnParallelLinear(self._backend, head)

    def _load_layer(self, weights: dict[str, Weight], checkpoint: Checkpoint) -> LlamaLayer:
        def read(parameter: str) -> Tensor:
            return weights[parameter].read(checkpoint, self._dtype)

        backend, group = self._backend, self._group
        bias = read("qkv_bias") if "qkv_bias" in weights else None
        return LlamaLayer(
            input_norm=read("input_norm"),
            qkv=ColumnParallelLinear(backend, read("qkv"), bias),
            output=RowParallelLinear(backend, group, read("output")),
            mlp_norm=read("mlp_norm"),
            gate_up=ColumnParallelLinear(backend, read("gate_up")),
            down=RowParallelLinear(backend, group, read("down")),
        )

    def kv_cache_shape(self, num_blocks: int, block_size: int) -> tuple[int, ...]:
        """``(num_blocks, num_layers, 2, num_kv_heads, block_size, head_dim)`` of this rank."""
        num_layers, head_dim = self.shard.num_layers, self.config.head_dim
        return (num_blocks, num_layers, 2, self._num_kv_heads, block_size, head_dim)

    def embed(self, token_ids: Tensor) -> Tensor:
        """See CausalModel."""
        return self._embedding(token_ids)

    def forward(self, hidden: Tensor, batch: RaggedBatch, kv_cache: Tensor) -> Tensor:
        """See CausalModel."""
        ops, eps, residual = self._backend, self.config.rms_norm_eps, hidden
        x = ops.rms_norm(residual, self._layers[0].input_norm, eps)
        for index, layer in enumerate(self._layers):
            if index > 0:
                x = ops.add_rms_norm(x, residual, layer.input_norm, eps)
            x = self._attention(x, layer, index, batch, kv_cache)
            x = ops.add_rms_norm(x, residual, layer.mlp_norm, eps)
            x = layer.down(ops.silu_and_mul(layer.gate_up(x)))
        return residual.add_(x)

    def logits(self, hidden: Tensor, rows: Tensor) -> Tensor:
        """See CausalModel."""
        x = hidden.index_select(0, rows)
        x = self._backend.rms_norm(x, self._final_norm, self.config.rms_norm_eps)
        return self._head(x).float()

    def _attention(
        self, x: Tensor, layer: LlamaLayer, index: int, batch: RaggedBatch, kv_cache: Tensor
    ) -> Tensor:
        ops, sizes = self._backend, [self._num_heads, self._num_kv_heads, self._num_kv_heads]
        qkv = layer.qkv(x).view(len(x), sum(sizes), self.config.head_dim)
        query, key, value = torch.split(qkv, sizes, dim=1)
        ops.rope(query, key, batch.positions, self._cos_sin)
        ops.store_kv(key, value, kv_cache, index, batch.slots)
        attended = ops.paged_attention(query, kv_cache, index, batch, self._scale)
        return layer.output(attended.flatten(1))
