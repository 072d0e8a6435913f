"""From files on disk to a model that can run."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from fabric.core.errors import CheckpointError, ConfigError
from fabric.core.plan import ParallelConfig
from fabric.core.request import ModelCard
from fabric.core.sampling import GenerationDefaults
from fabric.core.weights import Quantization
from fabric.models.config import ModelConfig
from fabric.models.model import CausalModel, RankPart
from fabric.models.model_files import (
    FileStamp,
    ModelFiles,
    file_stamps,
    open_checkpoint,
    open_files,
)
from fabric.models.parameters import CheckpointWeights, ParameterGroup, quantized
from fabric.models.progress import Progress
from fabric.models.registry import build_model, check_checkpoint, parameter_groups
from fabric.models.shard import shard_of
from fabric.models.sources import LocalModel
from fabric.models.weight_layout import WeightLayout, lay_out
from fabric.parallel.group import Group, SoloGroup
from kernels.ops import Backend

DtypeName = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """All that there is to know of a rank's part of a model before its weights are read.

    ``groups`` are the parameters of this rank, ``layout`` is where they lie once they are packed
    for the backend it was opened for. ``stamps`` are the files' at that time. ``tokenizer_path``
    is for :meth:`fabric.models.tokenizer.Tokenizer.load`.
    """

    local: LocalModel
    stamps: tuple[FileStamp, ...]
    config: ModelConfig
    defaults: GenerationDefaults
    dtype: torch.dtype
    max_model_len: int
    num_parameters: int
    quantization: Quantization
    part: RankPart
    groups: tuple[ParameterGroup, ...]
    layout: WeightLayout

    @property
    def tokenizer_path(self) -> Path:
        """Where the tokenizer is."""
        return self.local.path

    @property
    def source(self) -> str:
        """The string that the files came from."""
        return self.local.source

    def card(self, name: str) -> ModelCard:
        """Describe the model as it is served under ``name``."""
        return ModelCard(
            model=name,
            tokenizer_path=str(self.tokenizer_path),
            max_model_len=self.max_model_len,
            vocab_size=self.config.vocab_size,
            dtype=str(self.dtype).removeprefix("torch."),
            architecture=self.config.architecture,
            num_parameters=self.num_parameters,
            source=self.source,
            quantization=self.quantization,
        )

    def build(self, backend: Backend) -> CausalModel:
        """Build the model without weights."""
        return build_model(self.config, backend, self.dtype, self.max_model_len, self.part)

    @contextmanager
    def reading(self, backend: Backend) -> Iterator[CheckpointWeights]:
        """Open the files again, to read this rank's weights and have them packed one by one.

        Raises:
            CheckpointError: The files have changed, or can't be opened.
        """
        if file_stamps(self.local) != self.stamps:
            raise CheckpointError(f"{self.local.path} has changed since the model was opened")
        checkpoint = open_checkpoint(self.local)
        try:
            yield CheckpointWeights(
                checkpoint, self.groups, backend, self.dtype, one_at_a_time=True
            )
        finally:
            checkpoint.close()


@dataclass(frozen=True, slots=True)
class LoadedModel(OpenedModel):
    """A model with its weights."""

    model: CausalModel


@dataclass(frozen=True, slots=True)
class RankPlace:
    """Where in a device group a rank is; ``group`` are the tensor ranks of its stage.

    ``layer_split`` are the layers of each stage; None: see fabric.models.shard. ``device`` is
    what its tensors are on.
    """

    parallel: ParallelConfig
    stage: int
    group: Group
    layer_split: tuple[int, ...] | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def alone(cls) -> "RankPlace":
        """The place of a rank that has the whole model."""
        return cls(ParallelConfig(), 0, SoloGroup())

    def part_of(self, config: ModelConfig) -> RankPart:
        """The part of a model that belongs here.

        Raises:
            ConfigError: The model can't be cut so.
        """
        shard = shard_of(config, self.parallel, self.stage, self.group.rank, self.layer_split)
        return RankPart(shard, self.group, self.device)


def open_model(
    local: LocalModel,
    backend: Backend,
    dtype: DtypeName,
    max_model_len: int | None,
    place: RankPlace | None = None,
    quantization: Quantization = "none",
) -> OpenedModel:
    """Read a model's configuration, check the names and shapes of all its tensors, read none.

    Args:
        local: Where the files are.
        backend: The weights are laid out for it.
        dtype: Of weights, activations and KV; "auto" is the stored one, with bfloat16 for
            float16 and for quantized weights.
        max_model_len: Longest sequence; None: what the model was made for.
        place: Whose weights are meant; None: all.
        quantization: How those of linear layers are stored; see fabric.models.parameters.

    Raises:
        CheckpointError: The files are malformed, or don't fit a supported model.
        ConfigError: ``max_model_len`` is more than the model was made for, or the model can't be
            cut for that place.
        SourceError: The tokenizer is missing or malformed.
    """
    stamps, files = file_stamps(local), open_files(local)
    try:
        wanted = _Wanted(backend, dtype, max_model_len, place, quantization)
        return _describe(local, stamps, files, wanted)
    finally:
        files.checkpoint.close()


def load_model(
    local: LocalModel,
    backend: Backend,
    dtype: DtypeName,
    max_model_len: int | None,
    progress: Progress,
    place: RankPlace | None = None,
) -> LoadedModel:
    """Open a model and load its weights, or one rank's part of them, into a backend's layout.

    Arguments and errors are those of :func:`open_model`; ``progress`` hears of the stage "load
    weights".
    """
    stamps, files = file_stamps(local), open_files(local)
    try:
        wanted = _Wanted(backend, dtype, max_model_len, place)
        opened = _describe(local, stamps, files, wanted)
        model = opened.build(backend)
        model.load_weights(files.checkpoint, progress)
    finally:
        files.checkpoint.close()
    known = {field.name: getattr(opened, field.name) for field in dataclasses.fields(opened)}
    return LoadedModel(**known, model=model)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """How a model is to be opened."""

    backend: Backend
    dtype: DtypeName
    max_model_len: int | None
    place: RankPlace | None
    quantization: Quantization = "none"


def _describe(
    local: LocalModel, stamps: tuple[FileStamp, ...], files: ModelFiles, wanted: _Wanted
) -> OpenedModel:
    config, dtype = files.config, _torch_dtype(wanted.dtype, files.config)
    length = _checked_length(wanted.max_model_len, config)
    part = (wanted.place or RankPlace.alone()).part_of(config)
    num_parameters = check_checkpoint(config, files.checkpoint)
    groups = quantized(parameter_groups(config, part.shard), wanted.quantization)
    return OpenedModel(
        local=local,
        stamps=stamps,
        config=config,
        defaults=files.defaults,
        dtype=dtype,
        max_model_len=length,
        num_parameters=num_parameters,
        quantization=wanted.quantization,
        part=part,
        groups=groups,
        layout=lay_out(groups, wanted.backend, dtype),
    )


def _checked_length(asked: int | None, config: ModelConfig) -> int:
    most = config.max_position_embeddings
    if asked is None:
        return most
    if not 1 <= asked <= most:
        raise ConfigError(f"max_model_len is {asked}; the model allows 1 to {most}")
    return asked


def _torch_dtype(asked: DtypeName, config: ModelConfig) -> torch.dtype:
    if asked == "float32" or (asked == "auto" and config.dtype == "float32"):
        return torch.float32
    return torch.bfloat16
