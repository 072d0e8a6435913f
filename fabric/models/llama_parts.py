"""A Llama rank's layers, and what is outside of them, built as their parameters arrive."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from fabric.core.errors import SourceError
from fabric.models.config import ModelConfig
from fabric.models.layers import ColumnParallelLinear, RowParallelLinear, VocabParallelEmbedding
from fabric.models.model import RankPart
from fabric.models.parameters import Parameters, WeightSource
from fabric.models.progress import Progress
from kernels.ops import Backend


@dataclass(frozen=True, slots=True)
class LlamaLayer:
    """One decoder layer's parameters."""

    input_norm: Tensor
    qkv: ColumnParallelLinear
    output: RowParallelLinear
    mlp_norm: Tensor
    gate_up: ColumnParallelLinear
    down: RowParallelLinear


@dataclass(frozen=True, slots=True)
class LlamaEnds:
    """What is outside of the layers: the first stage embeds, the last one has norm and head."""

    embedding: VocabParallelEmbedding | None
    final_norm: Tensor | None
    head: ColumnParallelLinear | None


class LlamaParts:
    """The parts that iterations use; a part whose parameters aren't there yet is waited for."""

    def __init__(self, config: ModelConfig, part: RankPart, backend: Backend) -> None:
        self._config = config
        self._part = part
        self._backend = backend
        self._source: WeightSource | None
        self._ends: LlamaEnds | None
        self._layers: list[LlamaLayer | None]
        self.detach()

    def attach(self, source: WeightSource) -> None:
        """Take parameters from here as they are needed."""
        self.detach()
        self._source = source

    def detach(self) -> None:
        """Let go of all parameters."""
        self._source = None
        self._ends = None
        self._layers = [None] * self._part.shard.num_layers

    def take_all(self, source: WeightSource, progress: Progress) -> None:
        """Take all parameters now, and keep no source."""
        self.attach(source)
        self._ends = self._build_ends(source.group(0))
        for done in range(len(self._layers)):
            progress.update("load weights", done, len(self._layers))
            self._layer(done)
        progress.update("load weights", len(self._layers), len(self._layers))
        self._source = None

    @property
    def ends(self) -> LlamaEnds:
        """What is outside of the layers."""
        if self._ends is None:
            self._ends = self._build_ends(self._group(0))
        return self._ends

    def layers(self) -> Iterator[LlamaLayer]:
        """The layers, each when it is there."""
        return map(self._layer, range(len(self._layers)))

    def _layer(self, index: int) -> LlamaLayer:
        layer = self._layers[index]
        if layer is None:
            layer = self._layers[index] = self._build_layer(self._group(1 + index))
        return layer

    def _group(self, index: int) -> Parameters:
        source = self._source
        if source is None:
            raise SourceError("the model's weights are not on the device")
        return source.group(index)

    def _build_ends(self, parameters: Parameters) -> LlamaEnds:
        shard, backend, embedding = self._part.shard, self._backend, None
        if shard.is_first:
            vocabulary = shard.vocabulary(self._config)
            embedding = VocabParallelEmbedding(
                self._part.group, vocabulary, parameters.tensor("embedding")
            )
        if not shard.is_last:
            return LlamaEnds(embedding, None, None)
        # A tied head comes next, while its embedding has just been read.
        head = ColumnParallelLinear(backend, parameters.linear("head"))
        return LlamaEnds(embedding, parameters.tensor("final_norm"), head)

    def _build_layer(self, parameters: Parameters) -> LlamaLayer:
        tensor, linear = parameters.tensor, parameters.linear
        backend, group = self._backend, self._part.group
        bias = tensor("qkv_bias") if self._config.has_qkv_bias else None
        return LlamaLayer(
            input_norm=tensor("input_norm"),
            qkv=ColumnParallelLinear(backend, linear("qkv"), bias),
            output=RowParallelLinear(backend, group, linear("output")),
            mlp_norm=tensor("mlp_norm"),
            gate_up=ColumnParallelLinear(backend, linear("gate_up")),
            down=RowParallelLinear(backend, group, linear("down")),
        )
