"""The Llama family: LLaMA, Llama 2 and 3, SmolLM2, and whatever has their shape.

Source: Touvron et al., 2023 (LLaMA; Llama 2); grouped queries: Ainslie et al., EMNLP 2023.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fabric.models.checkpoint import Checkpoint
from fabric.models.config import ModelConfig
from fabric.models.progress import Progress
from fabric.models.rope import cos_sin_table
from fabric.models.weights import Weight, WeightPart, check_weights
from kernels.ops import Backend, PackedLinear, RaggedBatch

# Parameter: the checkpoint's tensors that are stacked into it. Layers' names lack their prefix.
WEIGHTS = {
    "embedding": ("model.embed_tokens.weight",),
    "final_norm": ("model.norm.weight",),
    "head": ("lm_head.weight",),
}
LAYER_WEIGHTS = {
    "input_norm": ("input_layernorm.weight",),
    "qkv": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "output": ("self_attn.o_proj.weight",),
    "mlp_norm": ("post_attention_layernorm.weight",),
    "gate_up": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "down": ("mlp.down_proj.weight",),
}


@dataclass(frozen=True, slots=True)
class LlamaLayer:
    """One decoder layer's parameters."""

    input_norm: Tensor
    qkv: PackedLinear
    output: PackedLinear
    mlp_norm: Tensor
    gate_up: PackedLinear
    down: PackedLinear


class LlamaForCausalLM:
    """A Llama decoder over paged KV, built from a backend's operations."""

    def __init__(
        self,
        config: ModelConfig,
        backend: Backend,
        dtype: torch.dtype,
        max_model_len: int | None = None,
    ) -> None:
        """Prepare an empty model; ``max_model_len`` bounds positions (None: the config's)."""
        self.config = config
        self._backend = backend
        self._dtype = dtype
        self._scale = config.head_dim**-0.5
        self._cos_sin = cos_sin_table(
            config.rope, config.head_dim, max_model_len or config.max_position_embeddings
        )
        self._layers: list[LlamaLayer] = []
        self._embedding: Tensor
        self._final_norm: Tensor
        self._head: PackedLinear

    def load_weights(self, checkpoint: Checkpoint, progress: Progress) -> int:
        """Take every weight from the checkpoint; return the number of their elements.

        Parameters are read and packed one by one, so that the peak is the model and one of them.

        Raises:
            CheckpointError: Tensors are missing, unused, mis-shaped or unreadable.
        """
        top, layers = weights_of(self.config)
        spare = WEIGHTS["head"] if self.config.tie_word_embeddings else ()
        num_parameters = check_weights(
            [*top.values(), *(weight for layer in layers for weight in layer.values())],
            checkpoint,
            spare,
        )
        self._embedding = top["embedding"].read(checkpoint, self._dtype)
        self._final_norm = top["final_norm"].read(checkpoint, self._dtype)
        head = self._embedding if "head" not in top else top["head"].read(checkpoint, self._dtype)
        self._head = self._backend.pack_linear(head)
        for done, layer in enumerate(layers):
            progress.update("load weights", done, len(layers))
            self._layers.append(self._load_layer(layer, checkpoint))
        progress.update("load weights", len(layers), len(layers))
        return num_parameters

    def _load_layer(self, weights: dict[str, Weight], checkpoint: Checkpoint) -> LlamaLayer:
        def pack(parameter: str) -> PackedLinear:
            return self._backend.pack_linear(weights[parameter].read(checkpoint, self._dtype))

        return LlamaLayer(
            input_norm=weights["input_norm"].read(checkpoint, self._dtype),
            qkv=pack("qkv"),
            output=pack("output"),
            mlp_norm=weights["mlp_norm"].read(checkpoint, self._dtype),
            gate_up=pack("gate_up"),
            down=pack("down"),
        )

    def kv_cache_shape(self, num_blocks: int, block_size: int) -> tuple[int, ...]:
        """``(num_blocks, num_layers, 2, num_kv_heads, block_size, head_dim)``."""
        config = self.config
        return (num_blocks, config.num_layers, 2, config.num_kv_heads, block_size, config.head_dim)

    def forward(
        self, token_ids: Tensor, batch: RaggedBatch, kv_cache: Tensor, logits_rows: Tensor
    ) -> Tensor:
        """Compute the KV of all tokens, and the logits after some of them.

        Args:
            token_ids: ``[num_tokens]`` int64.
            batch: Where the tokens and their KV belong.
            kv_cache: See :meth:`kv_cache_shape`; written in place.
            logits_rows: ``[num_rows]`` int64, the tokens whose next token is asked for.

        Returns:
            ``[num_rows, vocab_size]`` float32.
        """
        ops, eps = self._backend, self.config.rms_norm_eps
        residual = self._embedding.index_select(0, token_ids)
        x = ops.rms_norm(residual, self._layers[0].input_norm, eps)
        for index, layer in enumerate(self._layers):
            if index > 0:
                x = ops.add_rms_norm(x, residual, layer.input_norm, eps)
            x = self._attention(x, layer, index, batch, kv_cache)
            x = ops.add_rms_norm(x, residual, layer.mlp_norm, eps)
            x = ops.linear(ops.silu_and_mul(ops.linear(x, layer.gate_up)), layer.down)
        x, residual = x.index_select(0, logits_rows), residual.index_select(0, logits_rows)
        x = ops.add_rms_norm(x, residual, self._final_norm, eps)
        return ops.linear(x, self._head).float()

    def _attention(
        self, x: Tensor, layer: LlamaLayer, index: int, batch: RaggedBatch, kv_cache: Tensor
    ) -> Tensor:
        ops, config = self._backend, self.config
        sizes = [config.num_heads, config.num_kv_heads, config.num_kv_heads]
        qkv = ops.linear(x, layer.qkv).view(len(x), sum(sizes), config.head_dim)
        query, key, value = torch.split(qkv, sizes, dim=1)
        ops.rope(query, key, batch.positions, self._cos_sin)
        ops.store_kv(key, value, kv_cache, index, batch.slots)
        attended = ops.paged_attention(query, kv_cache, index, batch, self._scale)
        return ops.linear(attended.flatten(1), layer.output)


def weights_of(config: ModelConfig) -> tuple[dict[str, Weight], list[dict[str, Weight]]]:
    """The weights of a Llama model by parameter: outside of layers, and each layer's."""
    hidden, query = config.hidden_size, config.num_heads * config.head_dim
    key = config.num_kv_heads * config.head_dim
    shapes: dict[str, tuple[tuple[int, ...], ...]] = {
        "embedding": ((config.vocab_size, hidden),),
        "final_norm": ((hidden,),),
        "head": ((config.vocab_size, hidden),),
        "input_norm": ((hidden,),),
        "qkv": ((query, hidden), (key, hidden), (key, hidden)),
        "output": ((hidden, query),),
        "mlp_norm": ((hidden,),),
        "gate_up": ((config.intermediate_size, hidden), (config.intermediate_size, hidden)),
        "down": ((hidden, config.intermediate_size),),
    }

    def weight(parameter: str, names: tuple[str, ...], prefix: str = "") -> Weight:
        parts = zip(names, shapes[parameter], strict=True)
        return Weight(parameter, tuple(WeightPart(prefix + name, shape) for name, shape in parts))

    top = {
        parameter: weight(parameter, names)
        for parameter, names in WEIGHTS.items()
        if not (parameter == "head" and config.tie_word_embeddings)
    }
    layers = [
        {
            parameter: weight(parameter, names, f"model.layers.{layer}.")
            for parameter, names in LAYER_WEIGHTS.items()
        }
        for layer in range(config.num_layers)
    ]
    return top, layers
