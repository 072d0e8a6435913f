"""The operations that models are built from: signatures and contracts.

Every backend but the reference keeps one promise beyond being right: **row invariance**. An output
row (a token's) is bitwise the same whatever other rows are in the call, however the prompt is cut
into chunks and whatever the block size is, because each row is reduced in one fixed order. Greedy
output can then not depend on batching, paging, prefix caching or preemption.

Shapes use docs/glossary.md. KV of one model lives in a 6-D tensor
``kv_cache[num_blocks, num_layers, 2, num_kv_heads, block_size, head_dim]`` (2: keys, values). Its
first dimension may have any stride, so that several models can share one arena.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import torch
from torch import Tensor

PLAIN = "plain"


class ShapeError(ValueError):
    """Operands' shapes, dtypes or devices don't fit together."""


class WeightFormat(StrEnum):
    """How the weights of linear layers are stored.

    ``DENSE`` ones have the dtype of activations. The others are integers with scales, INT8 a scale
    for each output feature, INT4 one for each group of input features: kernels.quantization has
    their values.
    """

    DENSE = "dense"
    INT8 = "int8"
    INT4 = "int4"


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """A linear layer's weight in the layout that its backend streams best.

    ``data`` is owned by the backend that packed it, one uint8 tensor if ``format`` isn't DENSE;
    ``[out_features, in_features]`` is the shape of the weight that went in, ``dtype`` is that of
    the activations it takes and gives.
    """

    data: Tensor
    out_features: int
    in_features: int
    dtype: torch.dtype
    format: WeightFormat = WeightFormat.DENSE


@dataclass(frozen=True, slots=True)
class RaggedBatch:
    """Which tokens of a flattened batch belong to which sequence, and where their KV is.

    Attributes:
        positions: ``[num_tokens]`` int32, each token's position in its sequence.
        slots: ``[num_tokens]`` int64, where each token's KV goes: block id * block_size + offset.
        query_start: ``[num_seqs + 1]`` int32, prefix sums of new tokens.
        context_lens: ``[num_seqs]`` int32, tokens with KV once this batch is stored.
        block_tables: ``[num_seqs, max_blocks]`` int32, padded with 0.
    """

    positions: Tensor
    slots: Tensor
    query_start: Tensor
    context_lens: Tensor
    block_tables: Tensor


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """What all layers of a decoder share.

    Attributes:
        num_heads: Query heads of this rank; ``num_kv_heads`` likewise.
        num_kv_heads: See above.
        head_dim: Of queries, keys and values.
        norm_eps: Of both norms of a layer.
        cos_sin: ``[max_model_len, head_dim]`` float32, see :meth:`Backend.rope`.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    cos_sin: Tensor


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """One decoder layer's parameters: attention, then a gated MLP, each after a norm.

    Attributes:
        input_norm: ``[hidden_size]``.
        qkv: To ``(num_heads + 2 * num_kv_heads) * head_dim``: queries, keys, values.
        qkv_bias: As wide as ``qkv``'s output; None: none.
        output: From ``num_heads * head_dim`` to hidden_size.
        mlp_norm: ``[hidden_size]``.
        gate_up: To ``2 * intermediate_size``: gate, then up.
        down: From ``intermediate_size`` to hidden_size.
    """

    input_norm: Tensor
    qkv: PackedLinear
    qkv_bias: Tensor | None
    output: PackedLinear
    mlp_norm: Tensor
    gate_up: PackedLinear
    down: PackedLinear


class DecoderLayer(Protocol):
    """One layer, ready to run; each half ends where tensor ranks sum their outputs.

    ``residual`` is ``[num_tokens, hidden_size]``, updated in place; ``x``, what a half before this
    one returned, is added to it first.
    """

    def attention(
        self, x: Tensor | None, residual: Tensor, batch: RaggedBatch, kv_cache: Tensor
    ) -> Tensor:
        """Norm, queries/keys/values, rope, storing keys and values, attention, output.

        Args:
            x: ``[num_tokens, hidden_size]``; None before the first layer.
            residual: See the class.
            batch: See :class:`RaggedBatch`.
            kv_cache: See the module; written in place.

        Returns:
            ``[num_tokens, hidden_size]``, a new tensor.
        """
        ...

    def mlp(self, x: Tensor, residual: Tensor) -> Tensor:
        """Norm, gate and up, activation, down; arguments and result as of :meth:`attention`."""
        ...


class Backend(Protocol):
    """One implementation of the operations, for one kind of device.

    Activations, weights and KV share one dtype, float32 or bfloat16; sums are in float32. Outputs
    are new tensors unless said otherwise.
    """

    @property
    def packing(self) -> str:
        """Names the layout of packed weights; backends of one layout can use each other's.

        ``PLAIN``: weights stay as they are, and packed ones share their memory.
        """
        ...

    def packed_shape(
        self,
        out_features: int,
        in_features: int,
        dtype: torch.dtype,
        weight_format: WeightFormat = WeightFormat.DENSE,
    ) -> tuple[int, int]:
        """The shape that packing ``[out_features, in_features]`` gives ``PackedLinear.data``.

        Its dtype is uint8 if ``weight_format`` isn't DENSE.
        """
        ...

    def pack_linear(
        self,
        weight: Tensor,
        weight_format: WeightFormat = WeightFormat.DENSE,
        out: Tensor | None = None,
    ) -> PackedLinear:
        """Pack ``[out_features, in_features]`` for :meth:`linear`; the input may be freed.

        Args:
            weight: See above; rows may be strided.
            weight_format: How it is stored.
            out: Memory of :meth:`packed_shape` that may be packed into; None: new memory.
        """
        ...

    def linear(self, x: Tensor, weight: PackedLinear) -> Tensor:
        """``x @ weight.T``: ``[num_tokens, in_features]`` to ``[num_tokens, out_features]``.

        With a format other than DENSE, rows of ``x`` that aren't finite give rows of NaN.
        """
        ...

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Root-mean-square norm over the last dimension; ``x`` is ``[num_tokens, hidden_size]``.

        Source: Zhang and Sennrich, NeurIPS 2019.
        """
        ...

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Add ``x`` into ``residual`` in place, and return the norm of the sum."""
        ...

    def rope(self, query: Tensor, key: Tensor, positions: Tensor, cos_sin: Tensor) -> None:
        """Rotate query and key in place (halves, as in Hugging Face checkpoints).

        Args:
            query: ``[num_tokens, num_heads, head_dim]``, rows may be strided.
            key: ``[num_tokens, num_kv_heads, head_dim]``, rows may be strided.
            positions: ``[num_tokens]`` int32.
            cos_sin: ``[max_model_len, head_dim]`` float32: cosines, then sines.

        Source: RoFormer (Su et al., 2021).
        """
        ...

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        """``silu(gate) * up`` for ``[num_tokens, 2 * intermediate_size]`` = gate, then up."""
        ...

    def store_kv(
        self, key: Tensor, value: Tensor, kv_cache: Tensor, layer: int, slots: Tensor
    ) -> None:
        """Write each token's key and value into its slot of one layer.

        Args:
            key: ``[num_tokens, num_kv_heads, head_dim]``, rows may be strided.
            value: Like ``key``.
            kv_cache: See the module; written in place.
            layer: Layer index.
            slots: ``[num_tokens]`` int64.
        """
        ...

    def paged_attention(
        self, query: Tensor, kv_cache: Tensor, layer: int, batch: RaggedBatch, scale: float
    ) -> Tensor:
        """Causal attention of a ragged batch that mixes prompt chunks and decodes.

        The batch's own keys and values must be stored first. Blocks are read in place.

        Args:
            query: ``[num_tokens, num_heads, head_dim]``, rows may be strided; a KV head serves
                ``num_heads / num_kv_heads`` consecutive query heads.
            kv_cache: See the module.
            layer: Layer index.
            batch: Says which tokens attend to which blocks.
            scale: Multiplies the scores, 1/sqrt(head_dim) as a rule.

        Returns:
            ``[num_tokens, num_heads, head_dim]``, contiguous.

        Source: vLLM (Kwon et al., SOSP 2023), section 4.1; online softmax after
        FlashAttention (Dao et al., 2022).
        """
        ...

    def copy_blocks(self, source: Tensor, target: Tensor, pairs: Tensor) -> None:
        """Copy whole KV blocks (all layers) between two caches, or within one.

        Args:
            source: A kv_cache.
            target: Like ``source``; ``num_blocks`` may differ.
            pairs: ``[num_pairs, 2]`` int64 on the host, (source block, target block).

        Raises:
            ShapeError: The caches' blocks differ in shape or dtype.

        Source: vLLM (Kwon et al., SOSP 2023), section 4.4, copy-on-write.
        """
        ...

    def decoder_layer(
        self, shape: DecoderShape, weights: DecoderWeights, index: int
    ) -> DecoderLayer:
        """Prepare a layer; ``index`` is its place in ``kv_cache``.

        Its values are those of the operations above called one after the other, rounding included.

        Raises:
            ShapeError: The parameters don't fit each other.
        """
        ...

    def run_layers(
        self,
        layers: Sequence[DecoderLayer],
        hidden: Tensor,
        batch: RaggedBatch,
        kv_cache: Tensor,
    ) -> Tensor:
        """Run layers of this backend one after the other, without sums over ranks.

        Args:
            layers: In order.
            hidden: ``[num_tokens, hidden_size]``; may be overwritten.
            batch: See :class:`RaggedBatch`.
            kv_cache: See the module; written in place.

        Returns:
            ``[num_tokens, hidden_size]``: the residual after the last layer.
        """
        ...
