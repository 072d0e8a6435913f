"""From files on disk to a model that can run."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from fabric.core.errors import CheckpointError, ConfigError
from fabric.core.plan import ParallelConfig
from fabric.core.request import ModelCard
from fabric.core.sampling import GenerationDefaults
from fabric.models.checkpoint import Checkpoint, SafetensorsCheckpoint
from fabric.models.config import GGUF_ARCHITECTURES, ModelConfig, hf_architecture
from fabric.models.generation import generation_defaults
from fabric.models.gguf import GgufCheckpoint
from fabric.models.gguf_tokenizer import gguf_special_ids
from fabric.models.model import CausalModel, RankPart
from fabric.models.progress import Progress
from fabric.models.registry import build_model, check_architecture
from fabric.models.shard import shard_of
from fabric.models.sources import LocalModel
from fabric.models.tokenizer import Tokenizer
from fabric.parallel.group import Group, SoloGroup
from kernels.ops import Backend

DtypeName = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model with its weights, and what others must know of it.

    ``tokenizer_path`` is for :meth:`fabric.models.tokenizer.Tokenizer.load`.
    """

    model: CausalModel
    config: ModelConfig
    defaults: GenerationDefaults
    dtype: torch.dtype
    max_model_len: int
    num_parameters: int
    tokenizer_path: Path
    source: str

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
        )


@dataclass(frozen=True, slots=True)
class RankPlace:
    """Where in a device group a rank is; ``group`` are the tensor ranks of its stage.

    ``layer_split`` are the layers of each stage; None: see fabric.models.shard.
    """

    parallel: ParallelConfig
    stage: int
    group: Group
    layer_split: tuple[int, ...] | None = None

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
        return RankPart(shard, self.group)


@dataclass(frozen=True, slots=True)
class _Opened:
    """A checkpoint with its files' configuration read."""

    checkpoint: Checkpoint
    config: ModelConfig
    defaults: GenerationDefaults


def load_model(
    local: LocalModel,
    backend: Backend,
    dtype: DtypeName,
    max_model_len: int | None,
    progress: Progress,
    place: RankPlace | None = None,
) -> LoadedModel:
    """Load a model's weights, or one rank's part of them, into a backend's layout.

    Args:
        local: Where the files are.
        backend: Packs the weights and will run the model.
        dtype: Of weights, activations and KV; "auto" is the stored one, with bfloat16 for
            float16 and for quantized weights.
        max_model_len: Longest sequence; None: what the model was made for.
        progress: Hears of the stage "load weights".
        place: Whose weights to read; None: all.

    Raises:
        CheckpointError: The files are malformed, or don't fit a supported model.
        ConfigError: ``max_model_len`` is more than the model was made for, or the model can't be
            cut for that place.
        SourceError: The tokenizer is missing or malformed.
    """
    opened = _open_gguf(local.path) if local.format == "gguf" else _open_folder(local.path)
    try:
        config = opened.config
        length = _checked_length(max_model_len, config)
        torch_dtype = _torch_dtype(dtype, config)
        part = (place or RankPlace.alone()).part_of(config)
        model = build_model(config, backend, torch_dtype, length, part)
        num_parameters = model.load_weights(opened.checkpoint, progress)
    finally:
        opened.checkpoint.close()
    return LoadedModel(
        model=model,
        config=config,
        defaults=opened.defaults,
        dtype=torch_dtype,
        max_model_len=length,
        num_parameters=num_parameters,
        tokenizer_path=local.path,
        source=local.source,
    )


def _open_folder(folder: Path) -> _Opened:
    raw = _read_json(folder / "config.json")
    check_architecture(hf_architecture(raw))
    config = ModelConfig.from_hf(raw)
    path = folder / "generation_config.json"
    generation = _read_json(path) if path.is_file() else {}
    has_tokenizer = (folder / "tokenizer.json").is_file()
    ends = Tokenizer.load(folder).eos_token_ids if has_tokenizer else ()
    defaults = generation_defaults(generation, raw.get("eos_token_id"), ends)
    return _Opened(SafetensorsCheckpoint(folder), config, defaults)


def _open_gguf(path: Path) -> _Opened:
    checkpoint = GgufCheckpoint(path)
    metadata = checkpoint.metadata
    arch = str(metadata.get("general.architecture", "unknown"))
    check_architecture(GGUF_ARCHITECTURES.get(arch, arch))
    is_tied = "lm_head.weight" not in checkpoint.names()
    config = ModelConfig.from_gguf(metadata, is_tied, checkpoint.rope_factors)
    _, ends = gguf_special_ids(metadata)
    return _Opened(checkpoint, config, generation_defaults({}, ends))


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


def _read_json(path: Path) -> Mapping[str, object]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path}: an object is needed")
    return raw
