"""A model's files: its configuration, its tensors, and whether they are still the same."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fabric.core.errors import CheckpointError
from fabric.core.sampling import GenerationDefaults
from fabric.models.checkpoint import Checkpoint, SafetensorsCheckpoint
from fabric.models.config import GGUF_ARCHITECTURES, ModelConfig, hf_architecture
from fabric.models.generation import generation_defaults
from fabric.models.gguf_tokenizer import gguf_special_ids
from fabric.models.random_weights import RandomCheckpoint
from fabric.models.registry import check_architecture
from fabric.models.sources import LocalModel
from fabric.models.tokenizer import Tokenizer

if TYPE_CHECKING:
    from fabric.models.gguf import GgufCheckpoint


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A checkpoint that is open, with its files' configuration read."""

    checkpoint: Checkpoint
    config: ModelConfig
    defaults: GenerationDefaults


@dataclass(frozen=True, slots=True)
class FileStamp:
    """What changes when a file is written anew or replaced."""

    path: str
    num_bytes: int
    modified_ns: int
    inode: int


def open_files(local: LocalModel) -> ModelFiles:
    """Read a model's configuration and open its tensors.

    Raises:
        CheckpointError: The files are malformed, or no supported model's.
        SourceError: The tokenizer is malformed.
    """
    return _open_gguf(local.path) if local.format == "gguf" else _open_folder(local)


def open_checkpoint(local: LocalModel) -> Checkpoint:
    """Open a model's tensors alone.

    Raises:
        CheckpointError: A file is missing, truncated or malformed.
    """
    match local.format:
        case "gguf":
            return _gguf_checkpoint(local.path)
        case "random":
            return RandomCheckpoint(_config(local.path))
        case _:
            return SafetensorsCheckpoint(local.path)


def file_stamps(local: LocalModel) -> tuple[FileStamp, ...]:
    """What the files with a model's tensors look like now.

    Raises:
        CheckpointError: A file can't be looked at.
    """
    pattern = "config.json" if local.format == "random" else "*.safetensors*"
    files = [local.path] if local.format == "gguf" else sorted(local.path.glob(pattern))
    try:
        return tuple(_stamp(file.resolve(strict=True)) for file in files)
    except OSError as error:
        raise CheckpointError(f"{local.path}: {error}") from error


def _stamp(path: Path) -> FileStamp:
    found = path.stat()
    return FileStamp(str(path), found.st_size, found.st_mtime_ns, found.st_ino)


def _config(folder: Path) -> ModelConfig:
    raw = _read_json(folder / "config.json")
    check_architecture(hf_architecture(raw))
    return ModelConfig.from_hf(raw)


def _open_folder(local: LocalModel) -> ModelFiles:
    folder = local.path
    config, raw = _config(folder), _read_json(folder / "config.json")
    path = folder / "generation_config.json"
    generation = _read_json(path) if path.is_file() else {}
    has_tokenizer = (folder / "tokenizer.json").is_file()
    ends = Tokenizer.load(folder).eos_token_ids if has_tokenizer else ()
    defaults = generation_defaults(generation, raw.get("eos_token_id"), ends)
    return ModelFiles(open_checkpoint(local), config, defaults)


def _gguf_checkpoint(path: Path) -> "GgufCheckpoint":
    # Machines that load other formats may do without the package that it needs.
    from fabric.models.gguf import GgufCheckpoint

    return GgufCheckpoint(path)


def _open_gguf(path: Path) -> ModelFiles:
    checkpoint = _gguf_checkpoint(path)
    metadata = checkpoint.metadata
    arch = str(metadata.get("general.architecture", "unknown"))
    check_architecture(GGUF_ARCHITECTURES.get(arch, arch))
    is_tied = "lm_head.weight" not in checkpoint.names()
    config = ModelConfig.from_gguf(metadata, is_tied, checkpoint.rope_factors)
    _, ends = gguf_special_ids(metadata)
    return ModelFiles(checkpoint, config, generation_defaults({}, ends))


def _read_json(path: Path) -> Mapping[str, object]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path}: an object is needed")
    return raw
