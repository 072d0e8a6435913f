"""The head of a GGUF file: metadata and the list of tensors, each length checked before use.

The gguf library's own reader takes seconds for a vocabulary and trusts every length it reads.
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

from fabric.core.errors import CheckpointError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_MAX_DIMS = 4


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where one tensor's bytes start, its ggml type number, and its shape (slowest first)."""

    name: str
    type_number: int
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Metadata (numbers, strings, lists of them) and tensors by name."""

    metadata: dict[str, object]
    tensors: dict[str, GgufTensor]


def read_gguf_header(path: Path) -> GgufHeader:
    """Read a GGUF file's head (version 2 or 3, little-endian).

    Raises:
        CheckpointError: The file can't be read, is truncated or malformed; names it.
    """
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
            memoryview(data) as view,
        ):
            return _Reader(view).header()
    except (OSError, ValueError, struct.error) as error:
        raise CheckpointError(f"{path}: not a whole GGUF file: {error}") from error


class _Reader:
    """A cursor over the file; every read past the end raises struct.error or ValueError."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0

    def header(self) -> GgufHeader:
        if self._bytes(4) != _MAGIC:
            raise ValueError("it doesn't begin with GGUF")
        version = self._scalar("I")
        if version not in _VERSIONS:
            raise ValueError(f"version {version} is not supported; supported: 2, 3")
        num_tensors, num_keys = int(self._scalar("Q")), int(self._scalar("Q"))
        metadata: dict[str, object] = {}
        for _ in range(num_keys):
            key = self._string()
            metadata[key] = self._value(int(self._scalar("I")))
        infos = [self._tensor() for _ in range(num_tensors)]
        start = self._aligned(metadata.get("general.alignment", 32))
        tensors = {
            info.name: GgufTensor(info.name, info.type_number, info.shape, start + info.offset)
            for info in infos
        }
        if len(tensors) != num_tensors:
            raise ValueError("two tensors have the same name")
        return GgufHeader(metadata, tensors)

    def _aligned(self, alignment: object) -> int:
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise ValueError(f"general.alignment is {alignment!r}")
        return -(-self._at // alignment) * alignment

    def _bytes(self, length: int) -> bytes:
        end = self._at + length
        if end > len(self._data):
            raise ValueError(f"{length} bytes are announced at {self._at}, but the file ends")
        chunk = bytes(self._data[self._at : end])
        self._at = end
        return chunk

    def _scalar(self, code: str) -> int | float | bool:
        (value,) = struct.unpack_from("<" + code, self._data, self._at)
        self._at += struct.calcsize("<" + code)
        return value  # type: ignore[no-any-return]

    def _string(self) -> str:
        return self._bytes(int(self._scalar("Q"))).decode("utf-8", errors="replace")

    def _value(self, kind: int) -> object:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._array()
        if kind not in _SCALARS:
            raise ValueError(f"unknown value type {kind}")
        return self._scalar(_SCALARS[kind])

    def _array(self) -> list[object]:
        kind, length = int(self._scalar("I")), int(self._scalar("Q"))
        if kind == _STRING:
            return [self._string() for _ in range(length)]
        if kind not in _SCALARS:
            raise ValueError(f"arrays of value type {kind} are not supported")
        code = f"<{length}{_SCALARS[kind]}"
        return list(struct.unpack(code, self._bytes(struct.calcsize(code))))

    def _tensor(self) -> GgufTensor:
        name = self._string()
        num_dims = int(self._scalar("I"))
        if not 1 <= num_dims <= _MAX_DIMS:
            raise ValueError(f"tensor {name!r} has {num_dims} dimensions")
        shape = tuple(int(self._scalar("Q")) for _ in range(num_dims))[::-1]
        return GgufTensor(name, int(self._scalar("I")), shape, int(self._scalar("Q")))
