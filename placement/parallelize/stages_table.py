"""What all ranges of a model's layers cost on all meshes, as the compiled search takes it."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fabric.core.errors import ConfigError
from placement.parallelize.stage import MeshShape, StageCost, StageCosts
from placement.workload.trace import FloatArray, IntArray

TICKS_PER_S = 1e12
_Range = tuple[int, int, int]


def to_ticks(seconds: float) -> float:
    """Whole picoseconds: sums of these are equal in whatever order they are added."""
    return float(round(seconds * TICKS_PER_S))


class StageOptions:
    """Ways to run each range of layers on each mesh, asked for once.

    With ``has_equal_layers``, ranges of as many layers are of one class if both or neither begin
    with the first layer, and end with the last.
    """

    def __init__(
        self, costs: StageCosts, meshes: Sequence[MeshShape], has_equal_layers: bool
    ) -> None:
        self.meshes = tuple(meshes)
        self._num_layers = costs.num_layers
        self._classes: dict[tuple[int, ...], int] = {}
        self._options: list[tuple[StageCost, ...]] = []
        self._has_equal_layers = has_equal_layers
        for mesh, first, end in self._ranges():
            key = self._key(mesh, first, end)
            if key not in self._classes:
                self._classes[key] = len(self._options)
                self._options.append(_useful(costs.options(first, end, self.meshes[mesh])))

    def of(self, mesh: int, first: int, end: int) -> tuple[StageCost, ...]:
        """Ways to run these layers on the mesh of this number, by ascending seconds."""
        return self._options[self._classes[self._key(mesh, first, end)]]

    def classes(self) -> IntArray:
        """``[meshes, first layer, end]``: the class of each range, -1 if it has no layers."""
        shape = (len(self.meshes), self._num_layers, self._num_layers + 1)
        found = np.full(shape, -1, np.int32)
        for mesh, first, end in self._ranges():
            found[mesh, first, end] = self._classes[self._key(mesh, first, end)]
        return found

    def offsets(self) -> IntArray:
        """``[classes + 1]``: where each class' options begin among all."""
        return np.cumsum([0, *(len(each) for each in self._options)], dtype=np.int32)

    def ticks(self) -> FloatArray:
        """Picoseconds of all options, class by class."""
        times = [to_ticks(cost.seconds) for each in self._options for cost in each]
        return np.array(times, np.float64)

    def bytes(self) -> npt.NDArray[np.int64]:
        """Bytes of all options, class by class."""
        return np.array([cost.bytes for each in self._options for cost in each], np.int64)

    def _ranges(self) -> list[_Range]:
        ends = range(1, self._num_layers + 1)
        places = range(len(self.meshes))
        return [(mesh, first, end) for mesh in places for end in ends for first in range(end)]

    def _key(self, mesh: int, first: int, end: int) -> tuple[int, ...]:
        if self._has_equal_layers:
            return mesh, end - first, first == 0, end == self._num_layers
        return mesh, first, end


def _useful(options: Sequence[StageCost]) -> tuple[StageCost, ...]:
    """By ascending seconds and descending bytes, without those that are beaten in both."""
    useful: list[StageCost] = []
    for cost in sorted(options, key=lambda one: (to_ticks(_checked(one)), one.bytes)):
        if not useful or cost.bytes < useful[-1].bytes:
            useful.append(cost)
    return tuple(useful)


def _checked(cost: StageCost) -> float:
    if not 0.0 <= cost.seconds < math.inf:
        raise ConfigError(f"a stage takes {cost.seconds} s; a finite time of at least 0 is needed")
    return cost.seconds
