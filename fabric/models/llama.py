"""The Llama family: LLaMA, Llama 2 and 3, SmolLM2, Qwen2, and whatever has their shape.

Ranks of a stage have Megatron's pairs of linear layers: the first cut by output features, the
second by input features, and one all-reduce after it.

Source: Touvron et al., 2023 (LLaMA; Llama 2); Megatron-LM (Shoeybi et al., 2019), section 3;
grouped queries: Ainslie et al., EMNLP 2023;
biases of queries, keys and values: Qwen2 (Yang et al., 2024), section 2.2.
"""

import torch
from torch import Tensor

from fabric.models.checkpoint import Checkpoint
from fabric.models.config import ModelConfig
from fabric.models.llama_parts import LlamaParts
from fabric.models.llama_weights import HEAD, parameter_groups, weights_of
from fabric.models.model import RankPart
from fabric.models.parameters import CheckpointWeights, ParameterGroup, WeightSource
from fabric.models.progress import Progress
from fabric.models.rope import cos_sin_table
from fabric.models.shard import Shard
from fabric.models.weights import check_weights
from kernels.ops import Backend, DecoderShape, RaggedBatch


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
        self._backend = backend
        self._dtype = dtype
        self._group = part.group
        self._num_kv_heads = len(self.shard.kv_heads(config))
        shape = DecoderShape(
            num_heads=len(self.shard.heads(config)),
            num_kv_heads=self._num_kv_heads,
            head_dim=config.head_dim,
            norm_eps=config.rms_norm_eps,
            cos_sin=cos_sin_table(
                config.rope, config.head_dim, max_model_len or config.max_position_embeddings
            ).to(part.device),
        )
        self._parts = LlamaParts(config, part, backend, shape)

    @staticmethod
    def parameter_groups(config: ModelConfig, shard: Shard) -> tuple[ParameterGroup, ...]:
        """What a rank needs: parameters outside of layers, then each layer's."""
        return parameter_groups(config, shard)

    @staticmethod
    def check(config: ModelConfig, checkpoint: Checkpoint) -> int:
        """Check that a checkpoint has the whole model's tensors; return how many elements.

        Raises:
            CheckpointError: Tensors are missing, unused or mis-shaped.
        """
        top, layers = weights_of(config)
        weights = [*top.values(), *(weight for layer in layers for weight in layer.values())]
        spare = (HEAD,) if config.tie_word_embeddings else ()
        return check_weights(weights, checkpoint, spare)

    def load_weights(self, checkpoint: Checkpoint, progress: Progress) -> int:
        """Take this rank's weights from the checkpoint, which must be whole.

        Parameters are read and packed one by one, so that the peak is the shard and one of them.

        Returns:
            The number of elements of all weights, other ranks' included.

        Raises:
            CheckpointError: Tensors are missing, unused, mis-shaped or unreadable.
        """
        num_parameters = self.check(self.config, checkpoint)
        groups = parameter_groups(self.config, self.shard)
        source = CheckpointWeights(checkpoint, groups, self._backend, self._dtype)
        self._parts.take_all(source, progress)
        return num_parameters

    def attach(self, source: WeightSource) -> None:
        """See CausalModel."""
        self._parts.attach(source)

    def detach(self) -> None:
        """See CausalModel."""
        self._parts.detach()

    def kv_cache_shape(self, num_blocks: int, block_size: int) -> tuple[int, ...]:
        """``(num_blocks, num_layers, 2, num_kv_heads, block_size, head_dim)`` of this rank."""
        num_layers, head_dim = self.shard.num_layers, self.config.head_dim
        return (num_blocks, num_layers, 2, self._num_kv_heads, block_size, head_dim)

    def embed(self, token_ids: Tensor) -> Tensor:
        """See CausalModel."""
        embedding = self._parts.ends.embedding
        assert embedding is not None, "only the first stage embeds"
        return embedding(token_ids)

    def forward(self, hidden: Tensor, batch: RaggedBatch, kv_cache: Tensor) -> Tensor:
        """See CausalModel."""
        group, layers = self._group, self._parts.layers_there()
        if group.size == 1 and layers is not None:
            return self._backend.run_layers(layers, hidden, batch, kv_cache)
        x: Tensor | None = None
        for layer in self._parts.layers():
            x = layer.attention(x, hidden, batch, kv_cache)
            if group.size > 1:
                group.all_reduce(x)
            x = layer.mlp(x, hidden)
            if group.size > 1:
                group.all_reduce(x)
        assert x is not None
        return hidden.add_(x)

    def logits(self, hidden: Tensor, rows: Tensor) -> Tensor:
        """See CausalModel."""
        ends = self._parts.ends
        assert ends.final_norm is not None, "only the last stage makes logits"
        assert ends.head is not None
        x = hidden.index_select(0, rows)
        x = self._backend.rms_norm(x, ends.final_norm, self.config.rms_norm_eps)
        return self._backend.linear(x, ends.head)
