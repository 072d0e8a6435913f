"""How activations lie on a mesh, and what it costs to lay them out otherwise."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import permutations, product

import numpy as np
import numpy.typing as npt

from placement.devices import DeviceType, Link
from placement.parallelize.stage import MeshShape
from placement.workload.trace import FloatArray

LongArray = npt.NDArray[np.int64]

WHOLE, TOKENS, HIDDEN = 0, 1, 2
"""What a mesh axis does to an activation: nothing, or it cuts the rows, or the features."""

ELEMENT_BYTES = 2

Spec = tuple[int, ...]
"""For each mesh axis, how it cuts."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One direction of a mesh: devices in a row, and what connects them."""

    name: str
    size: int
    link: Link


Axes = tuple[Axis, ...]


def mesh_axes(mesh: MeshShape, device: DeviceType) -> Axes:
    """The directions of a mesh that have more than one device, the slow one first."""
    axes = (Axis("slow", mesh.slow, device.outside), Axis("fast", mesh.fast, device.inside))
    return tuple(axis for axis in axes if axis.size > 1)


@dataclass(frozen=True, slots=True)
class Features:
    """The width of a matrix, in pieces that stay together.

    ``parts`` are (pieces, numbers in each): heads are not cut, and where there are fewer pieces
    than devices, several devices hold the same one.
    """

    parts: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, width: int) -> "Features":
        """So many numbers that can be cut anywhere."""
        return cls(((width, 1),))

    def on(self, num_devices: int) -> int:
        """Numbers on the fullest of so many devices."""
        return sum(-(-pieces // num_devices) * size for pieces, size in self.parts)


@dataclass(frozen=True, slots=True)
class Activation:
    """A matrix of one row for each token."""

    rows: int
    features: Features

    def bytes_on(self, spec: Spec, axes: Axes) -> int:
        """Bytes of the fullest device's piece."""
        rows = -(-self.rows // num_cuts(spec, axes, TOKENS))
        return ELEMENT_BYTES * rows * self.features.on(num_cuts(spec, axes, HIDDEN))


def specs(axes: Axes) -> tuple[Spec, ...]:
    """All ways to lay an activation out; its place in here is a spec's number."""
    return tuple(product((WHOLE, TOKENS, HIDDEN), repeat=len(axes)))


def number_of(spec: Iterable[int]) -> int:
    """The place of a spec among all, as digits of base three."""
    number = 0
    for cut in spec:
        number = 3 * number + cut
    return number


def num_cuts(spec: Spec, axes: Axes, kind: int) -> int:
    """Pieces into which the axes that cut in this way cut."""
    return math.prod(axis.size for axis, cut in zip(axes, spec, strict=True) if cut == kind)


def all_gather_s(axis: Axis, num_bytes: float) -> float:
    """Seconds until every device has the whole, of so many bytes, of which each had a part.

    A reduce-scatter of as many bytes takes as long. A link's delay counts once: it is that of a
    collective's start, and what follows is pipelined.

    Source: Alpa (Zheng et al., OSDI 2022), section 4.2; Thakur et al. (IJHPCA 2005), section 4.
    """
    share = (axis.size - 1) / axis.size
    return axis.link.latency_s + share * num_bytes / axis.link.bytes_per_s


def all_reduce_s(axis: Axis, num_bytes: float) -> float:
    """Seconds until every device has the sum of all devices' so many bytes.

    It moves as much as a reduce-scatter and an all-gather, but starts once.
    """
    return all_gather_s(axis, 2 * num_bytes)


def all_to_all_s(axis: Axis, num_bytes: float) -> float:
    """Seconds until each device has sent every other an equal part of its so many bytes."""
    return all_gather_s(axis, num_bytes)


def sum_s(summed: list[Axis], scattered: list[Axis], num_bytes: float) -> float:
    """Seconds to sum so many bytes over some axes, and to scatter the sum over others of them.

    Axes are given slow before fast. The fast ones scatter first, so that slow links carry less.
    """
    seconds = 0.0
    for axis in reversed(scattered):
        seconds += all_gather_s(axis, num_bytes)
        num_bytes /= axis.size
    plain = sum(all_reduce_s(axis, num_bytes) for axis in summed)
    if len(summed) < 2:
        return seconds + plain
    slow, fast = summed
    nested = 2 * all_gather_s(fast, num_bytes) + all_reduce_s(slow, num_bytes / fast.size)
    return seconds + min(plain, nested)


def reshard_s(activation: Activation, source: Spec, target: Spec, axes: Axes) -> float:
    """Seconds to lay an activation out otherwise.

    Cutting what is whole is free and comes first; gathering comes last, so that all else has
    fewer bytes to move.
    """
    spec = [b if a == WHOLE else a for a, b in zip(source, target, strict=True)]
    seconds = 0.0
    for place, axis in enumerate(axes):
        if WHOLE not in (spec[place], target[place]) and spec[place] != target[place]:
            seconds += all_to_all_s(axis, activation.bytes_on(tuple(spec), axes))
            spec[place] = target[place]
    gathered = [place for place in range(len(axes)) if spec[place] != target[place]]
    orders = permutations(gathered)
    return seconds + min(_gather_s(activation, list(spec), order, axes) for order in orders)


def reshard_table(activation: Activation, axes: Axes) -> FloatArray:
    """Seconds from each spec (rows) to each (columns), by their numbers."""
    every = specs(axes)
    return np.array([[reshard_s(activation, a, b, axes) for b in every] for a in every])


def _gather_s(activation: Activation, spec: list[int], order: tuple[int, ...], axes: Axes) -> float:
    seconds = 0.0
    for place in order:
        spec[place] = WHOLE
        seconds += all_gather_s(axes[place], activation.bytes_on(tuple(spec), axes))
    return seconds
