"""A model's parameters in groups: those outside of layers, then each layer's."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from fabric.core.weights import Quantization
from fabric.models.checkpoint import Checkpoint
from fabric.models.reused_memory import ReusedMemory
from fabric.models.weights import Weight
from kernels.ops import PLAIN, Backend, PackedLinear, WeightFormat

_FORMATS = {
    "none": WeightFormat.DENSE,
    "int8": WeightFormat.INT8,
    "int4": WeightFormat.INT4,
}
# What comes after these is felt in every token, and they are read once.
_AT_LEAST_8_BITS = frozenset({"head"})


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter: which tensors it is made of, and whether a backend packs it for linears.

    ``format`` is that of a packed one.
    """

    name: str
    weight: Weight
    is_linear: bool = False
    format: WeightFormat = WeightFormat.DENSE


ParameterGroup = tuple[Parameter, ...]


def quantized(
    groups: Sequence[ParameterGroup], quantization: Quantization
) -> tuple[ParameterGroup, ...]:
    """The same parameters, with the weights of linear layers in integers; the head's has 8 bits."""
    return tuple(
        tuple(replace(parameter, format=_format(parameter, quantization)) for parameter in group)
        for group in groups
    )


def _format(parameter: Parameter, quantization: Quantization) -> WeightFormat:
    if not parameter.is_linear:
        return WeightFormat.DENSE
    if quantization == "int4" and parameter.name in _AT_LEAST_8_BITS:
        return WeightFormat.INT8
    return _FORMATS[quantization]


class Parameters(Protocol):
    """The values of one group's parameters."""

    def tensor(self, name: str) -> Tensor:
        """A parameter that is used as it is."""
        ...

    def linear(self, name: str) -> PackedLinear:
        """A parameter that is packed."""
        ...


class WeightSource(Protocol):
    """Where a model takes its parameters from, group by group."""

    def group(self, index: int) -> Parameters:
        """A group's values; waits until they are there.

        Raises:
            FabricError: They will never be.
        """
        ...


class CheckpointWeights:
    """Reads a rank's parameters from a checkpoint, and packs them, each when it is asked for."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        groups: Sequence[ParameterGroup],
        backend: Backend,
        dtype: torch.dtype,
        one_at_a_time: bool = False,
    ) -> None:
        """Read nothing yet.

        Args:
            checkpoint: Where from.
            groups: Which parameters.
            backend: Packs them.
            dtype: Of those that aren't integers.
            one_at_a_time: Whether a parameter is no longer needed when the next is asked for.
        """
        self._checkpoint = checkpoint
        self._groups = groups
        self._backend = backend
        self._dtype = dtype
        self._memory = _Memory() if one_at_a_time else None

    def group(self, index: int) -> "CheckpointParameters":
        """See WeightSource; nothing is read yet."""
        return CheckpointParameters(
            self._checkpoint, self._groups[index], self._backend, self._dtype, self._memory
        )


@dataclass(frozen=True, slots=True)
class _Memory:
    """For what is read, and for what is packed."""

    read: ReusedMemory = field(default_factory=ReusedMemory)
    packed: ReusedMemory = field(default_factory=ReusedMemory)


class CheckpointParameters:
    """One group of :class:`CheckpointWeights`."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        group: ParameterGroup,
        backend: Backend,
        dtype: torch.dtype,
        memory: _Memory | None,
    ) -> None:
        self._memory = memory
        self._checkpoint = checkpoint
        self._parameters = {parameter.name: parameter for parameter in group}
        self._backend = backend
        self._dtype = dtype
        # A tied head is asked for after its embedding, and shares what was read.
        self._last: tuple[Weight, Tensor] | None = None

    def tensor(self, name: str) -> Tensor:
        """Read the parameter."""
        weight = self._parameters[name].weight
        if self._last is None or self._last[0] != weight:
            self._last = None
            self._last = weight, self._read(weight, self._dtype)
        return self._last[1]

    def linear(self, name: str) -> PackedLinear:
        """Read the parameter, and pack it; integers come from what is stored, not from a dtype."""
        parameter = self._parameters[name]
        if parameter.format is WeightFormat.DENSE:
            return self._pack(self.tensor(name), parameter.format)
        stored = self._read(parameter.weight, None)
        return replace(self._pack(stored, parameter.format), dtype=self._dtype)

    def _read(self, weight: Weight, dtype: torch.dtype | None) -> Tensor:
        return weight.read(self._checkpoint, dtype, self._memory.read if self._memory else None)

    def _pack(self, weight: Tensor, kind: WeightFormat) -> PackedLinear:
        if self._memory is None or self._backend.packing == PLAIN:
            return self._backend.pack_linear(weight, kind)
        rows, columns = weight.shape
        shape = self._backend.packed_shape(rows, columns, weight.dtype, kind)
        dtype = weight.dtype if kind is WeightFormat.DENSE else torch.uint8
        return self._backend.pack_linear(weight, kind, self._memory.packed.tensor(shape, dtype))
