"""What the two levels of parallelization tell each other."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class MeshShape:
    """Devices of one pipeline stage: ``slow`` nodes or boards times ``fast`` devices in each."""

    slow: int
    fast: int

    @property
    def num_devices(self) -> int:
        """All of them."""
        return self.slow * self.fast


@dataclass(frozen=True, slots=True)
class Phase:
    """One kind of iteration: ``num_tokens`` new ones, each with ``context`` tokens before it.

    ``num_sequences`` have a token sampled. ``weight`` is how often it comes: costs of phases are
    summed with it.
    """

    name: str
    num_tokens: int
    num_sequences: int
    context: int
    weight: float


@dataclass(frozen=True, slots=True)
class StageCost:
    """A stage, cut over its mesh in one way: seconds of each phase, bytes of each device.

    ``seconds`` is the phases' weighted sum, ``phase_s`` each by itself. ``bytes`` are weights and
    the KV that was asked for, on the fullest device. ``strategies`` are (operator, strategy), for
    people.
    """

    seconds: float
    phase_s: tuple[float, ...]
    bytes: int
    strategies: tuple[tuple[str, str], ...] = ()


class StageCosts(Protocol):
    """Knows what consecutive layers cost on a mesh: the level within operators."""

    @property
    def num_layers(self) -> int:
        """Layers of the model; the first stage has the embedding too, the last one the head."""
        ...

    def options(self, first: int, end: int, mesh: MeshShape) -> tuple[StageCost, ...]:
        """Ways to run layers ``first`` to ``end`` (not included) on a mesh.

        None is both slower and larger than another; empty if none fits a device.
        """
        ...
