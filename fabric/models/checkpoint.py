"""Checkpoints: named tensors that are read one at a time."""

import json
from pathlib import Path
from typing import Protocol

from torch import Tensor

from fabric.core.errors import CheckpointError
from fabric.models.mapped_file import MappedFile

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
ALL = slice(None)


class Checkpoint(Protocol):
    """Named tensors on disk, under their Hugging Face names."""

    def names(self) -> frozenset[str]:
        """All tensors' names."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it."""
        ...

    def read(self, name: str, rows: slice = ALL, columns: slice = ALL) -> Tensor:
        """Read a range of a tensor, and no other rows of it.

        Args:
            name: The tensor's name.
            rows: Range along a matrix's first dimension, without a step.
            columns: Range along its second dimension.

        Returns:
            The range in its stored dtype; of quantized tensors in float32. It may be a view of
            the file, not to be written.
        """
        ...

    def close(self) -> None:
        """Let go of the files."""
        ...


class SafetensorsCheckpoint:
    """A folder's safetensors: model.safetensors, or the shards of its index."""

    def __init__(self, folder: Path) -> None:
        """Open every file and check its header against its length.

        Raises:
            CheckpointError: A file is missing, truncated or malformed; names it.
        """
        indexed = _read_index(folder / INDEX_FILE)
        files = sorted(set(indexed.values())) or [SINGLE_FILE]
        self._files = {file: MappedFile(folder / file) for file in files}
        self._file_of = {name: file for file in files for name in self._files[file].names()}
        absent = sorted(name for name in indexed if name not in self._file_of)
        if absent:
            raise CheckpointError(
                f"{folder / INDEX_FILE} lists {absent[0]!r} and {len(absent) - 1} more tensors "
                f"that its files don't have"
            )

    def names(self) -> frozenset[str]:
        """All tensors' names."""
        return frozenset(self._file_of)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it."""
        return self._files[self._file_of[name]].shape(name)

    def read(self, name: str, rows: slice = ALL, columns: slice = ALL) -> Tensor:
        """See Checkpoint; the file is mapped, and only what is looked at is read."""
        stored = self._files[self._file_of[name]].tensor(name)
        return stored[rows] if columns == ALL else stored[rows, columns]

    def close(self) -> None:
        """Let go of the files' memory; views that were kept stay valid."""
        for file in self._files.values():
            file.forget()


def _read_index(path: Path) -> dict[str, str]:
    """Tensor name to file name; empty where there is no index."""
    if not path.is_file():
        return {}
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        files = dict(index["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: not an index of safetensors: {error!r}") from error
    for file in files.values():
        if not isinstance(file, str) or Path(file).name != file:
            raise CheckpointError(f"{path}: {file!r} is not a file of the same folder")
    return files
