"""Where each parameter of a rank lies in one run of bytes, packed as its backend wants it.

Bytes in this layout are loaded by copying them: nothing is parsed, converted or packed.

Source: ServerlessLLM (Fu et al., OSDI 2024), section 4, loading-optimized checkpoints.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from fabric.models.parameters import Parameter, ParameterGroup, Parameters
from fabric.models.weights import Weight
from kernels.ops import PLAIN, Backend, PackedLinear, WeightFormat

ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class PlacedTensor:
    """A parameter's shape as it is stored, and the byte that it starts at.

    ``features`` are a packed one's ``(out_features, in_features)``; None: it is not packed. Of a
    ``format`` other than DENSE, the shape is of bytes.
    """

    name: str
    shape: tuple[int, ...]
    offset: int
    features: tuple[int, int] | None = None
    format: WeightFormat = WeightFormat.DENSE

    def stored_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """What is stored of a model of this dtype."""
        return dtype if self.format is WeightFormat.DENSE else torch.uint8

    def num_bytes(self, dtype: torch.dtype) -> int:
        """What it takes in a model of this dtype."""
        return prod(self.shape) * self.stored_dtype(dtype).itemsize


@dataclass(frozen=True, slots=True)
class PlacedGroup:
    """The bytes from ``start`` to ``end`` with the parameters of a group.

    ``shared`` names those that lie where one before them does: a tied head may.
    """

    start: int
    end: int
    tensors: tuple[PlacedTensor, ...]
    shared: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WeightLayout:
    """All parameters of a rank: outside of layers first, then layer by layer.

    Every tensor starts at a multiple of 64 bytes; ``packing`` is its backend's.
    """

    dtype: torch.dtype
    packing: str
    groups: tuple[PlacedGroup, ...]

    @property
    def num_bytes(self) -> int:
        """The length of everything."""
        return self.groups[-1].end


def lay_out(groups: Sequence[ParameterGroup], backend: Backend, dtype: torch.dtype) -> WeightLayout:
    """Place groups one after the other."""
    placed: list[PlacedGroup] = []
    for group in groups:
        start = placed[-1].end if placed else 0
        placed.append(_lay_out_group(group, backend, dtype, start))
    return WeightLayout(dtype, backend.packing, tuple(placed))


def _lay_out_group(
    group: ParameterGroup, backend: Backend, dtype: torch.dtype, start: int
) -> PlacedGroup:
    end, tensors, shared = start, [], []
    plain: list[tuple[Weight, int]] = []  # these can be shared
    for parameter in group:
        is_plain = not parameter.is_linear or (
            backend.packing == PLAIN and parameter.format is WeightFormat.DENSE
        )
        same = [at for weight, at in plain if is_plain and weight == parameter.weight]
        placed = _place(parameter, backend, dtype, same[0] if same else end)
        tensors.append(placed)
        if same:
            shared.append(parameter.name)
            continue
        if is_plain:
            plain.append((parameter.weight, end))
        end += -(-placed.num_bytes(dtype) // ALIGNMENT) * ALIGNMENT
    return PlacedGroup(start, end, tuple(tensors), tuple(shared))


def _place(parameter: Parameter, backend: Backend, dtype: torch.dtype, offset: int) -> PlacedTensor:
    shape = parameter.weight.shape
    if not parameter.is_linear:
        return PlacedTensor(parameter.name, shape, offset)
    out_features, in_features = shape
    features, kind = (out_features, in_features), parameter.format
    packed = backend.packed_shape(out_features, in_features, dtype, kind)
    return PlacedTensor(parameter.name, packed, offset, features, kind)


def stored_bytes(group: PlacedGroup, parameters: Parameters) -> Iterator[tuple[int, Tensor]]:
    """What to write for a group, one tensor after the other.

    Yields:
        Where it goes, and what: ``[num_bytes]`` uint8.
    """
    for placed in group.tensors:
        if placed.name in group.shared:
            continue
        if placed.features is None:
            values = parameters.tensor(placed.name)
        else:
            values = parameters.linear(placed.name).data
        assert tuple(values.shape) == placed.shape
        yield placed.offset, values.contiguous().flatten().view(torch.uint8)


class BufferWeights:
    """Parameters that are views of bytes in a layout; nothing is copied."""

    def __init__(self, layout: WeightLayout, buffer: Tensor) -> None:
        """Look at ``buffer``: ``[layout.num_bytes]`` uint8, at a multiple of 64 bytes."""
        assert buffer.data_ptr() % ALIGNMENT == 0
        self._layout = layout
        self._buffer = buffer

    def group(self, index: int) -> "BufferParameters":
        """See WeightSource; whether the bytes are there yet, others must know."""
        return BufferParameters(self._layout.groups[index], self._layout.dtype, self._buffer)


class BufferParameters:
    """One group of :class:`BufferWeights`."""

    def __init__(self, group: PlacedGroup, dtype: torch.dtype, buffer: Tensor) -> None:
        self._placed = {placed.name: placed for placed in group.tensors}
        self._dtype = dtype
        self._buffer = buffer

    def tensor(self, name: str) -> Tensor:
        """View the parameter."""
        placed = self._placed[name]
        stored = self._buffer[placed.offset : placed.offset + placed.num_bytes(self._dtype)]
        return stored.view(placed.stored_dtype(self._dtype)).view(placed.shape)

    def linear(self, name: str) -> PackedLinear:
        """View the packed parameter."""
        placed = self._placed[name]
        assert placed.features is not None
        return PackedLinear(self.tensor(name), *placed.features, self._dtype, placed.format)
