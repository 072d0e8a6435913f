"""A Llama rank's layers, and what is outside of them, built as their parameters arrive."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from fabric.core.errors import SourceError
from fabric.models.config import ModelConfig
from fabric.models.layers import VocabParallelEmbedding
from fabric.models.model import RankPart
from fabric.models.parameters import Parameters, WeightSource
from fabric.models.progress import Progress
from kernels.ops import Backend, DecoderLayer, DecoderShape, DecoderWeights, PackedLinear


@dataclass(frozen=True, slots=True)
class LlamaEnds:
    """What is outside of the layers: the first stage embeds, the last one has norm and head."""

    embedding: VocabParallelEmbedding | None
    final_norm: Tensor | None
    head: PackedLinear | None


class LlamaParts:
    """The parts that iterations use; a part whose parameters aren't there yet is waited for."""

    def __init__(
        self, config: ModelConfig, part: RankPart, backend: Backend, shape: DecoderShape
    ) -> None:
        self._config = config
        self._shape = shape
        self._part = part
        self._backend = backend
        self._source: WeightSource | None
        self._ends: LlamaEnds | None
        self._layers: list[DecoderLayer | None]
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

    def layers(self) -> Iterator[DecoderLayer]:
        """The layers, each when it is there."""
        return map(self._layer, range(len(self._layers)))

    def layers_there(self) -> list[DecoderLayer] | None:
        """All layers if none has to be waited for; else None."""
        layers = [layer for layer in self._layers if layer is not None]
        return layers if len(layers) == len(self._layers) else None

    def _layer(self, index: int) -> DecoderLayer:
        layer = self._layers[index]
        if layer is None:
            layer = self._layers[index] = self._build_layer(index, self._group(1 + index))
        return layer

    def _group(self, index: int) -> Parameters:
        source = self._source
        if source is None:
            raise SourceError("the model's weights are not on the device")
        return source.group(index)

    def _build_ends(self, parameters: Parameters) -> LlamaEnds:
        shard, embedding = self._part.shard, None
        if shard.is_first:
            vocabulary = shard.vocabulary(self._config)
            embedding = VocabParallelEmbedding(
                self._part.group, vocabulary, parameters.tensor("embedding")
            )
        if not shard.is_last:
            return LlamaEnds(embedding, None, None)
        # A tied head comes next, while its embedding has just been read.
        head = parameters.linear("head")
        return LlamaEnds(embedding, parameters.tensor("final_norm"), head)

    def _build_layer(self, index: int, parameters: Parameters) -> DecoderLayer:
        tensor, linear = parameters.tensor, parameters.linear
        weights = DecoderWeights(
            input_norm=tensor("input_norm"),
            qkv=linear("qkv"),
            qkv_bias=tensor("qkv_bias") if self._config.has_qkv_bias else None,
            output=linear("output"),
            mlp_norm=tensor("mlp_norm"),
            gate_up=linear("gate_up"),
            down=linear("down"),
        )
        return self._backend.decoder_layer(self._shape, weights, index)
