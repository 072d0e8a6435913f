"""A safetensors file as views of its mapped bytes, of which few stay in memory."""

import json
import mmap
from collections import deque
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fabric.core.errors import CheckpointError

DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_LENGTH_BYTES = 8  # of the header, which comes first
_NUM_TAKEN = 8


class _Handle(Protocol):
    """What we use of safetensors' untyped file handle."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class MappedFile:
    """Tensors by name, as views that stay valid; pages are let go of when the next are taken.

    So reading a file takes little more memory than its largest tensor, and nothing is copied.
    """

    def __init__(self, path: Path) -> None:
        """Map the file.

        Raises:
            CheckpointError: It is missing, truncated or malformed.
        """
        if not path.is_file():
            raise CheckpointError(f"{path} does not exist")
        _check(path)
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            header = json.loads(file.read(length))
            # Private and writable, as torch wants it; nobody writes.
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        header.pop("__metadata__", None)
        self._path = path
        self._header: dict[str, dict[str, object]] = header
        self._start = _LENGTH_BYTES + length
        # The ranges of those taken last: some are still to be looked at, together.
        self._taken: deque[tuple[int, int]] = deque(maxlen=_NUM_TAKEN)

    def names(self) -> list[str]:
        """All tensors' names."""
        return list(self._header)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""
        shape = self._header[name]["shape"]
        assert isinstance(shape, list)
        return tuple(shape)

    def tensor(self, name: str) -> Tensor:
        """A view of a tensor's bytes, not to be written.

        Raises:
            CheckpointError: Its type isn't known.
        """
        entry, shape = self._header[name], self.shape(name)
        dtype = DTYPES.get(str(entry["dtype"]))
        if dtype is None:
            raise CheckpointError(
                f"{self._path}: {name} is {entry['dtype']}; known are {', '.join(DTYPES)}"
            )
        self.forget()
        offsets = entry["data_offsets"]
        assert isinstance(offsets, list)
        first, end = (self._start + offset for offset in offsets)
        if first == end:
            return torch.empty(shape, dtype=dtype)
        self._taken.append((first, end - first))
        self._advise(mmap.MADV_WILLNEED, first, end - first)
        view = torch.frombuffer(self._bytes, dtype=torch.uint8, count=end - first, offset=first)
        if first % dtype.itemsize:
            view = view.clone()  # files of old writers are not aligned
        return view.view(dtype)[: prod(shape)].view(shape)

    def forget(self) -> None:
        """Let go of the pages of tensors that were taken; they can be read again."""
        for first, length in self._taken:
            self._advise(mmap.MADV_DONTNEED, first, length)

    def _advise(self, advice: int, first: int, length: int) -> None:
        page = first // mmap.PAGESIZE * mmap.PAGESIZE
        self._bytes.madvise(advice, page, length + first - page)


def _check(path: Path) -> None:
    """Have safetensors check the header against the file."""
    try:
        handle: _Handle = safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file: {error}") from error
    handle.__exit__(None, None, None)
