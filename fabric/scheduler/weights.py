"""What a scheduler knows of its models' weights, and what they let it do."""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Literal

from fabric.core.weights import WeightState


@dataclass(frozen=True, slots=True)
class ModelWeights:
    """What one model of a device group takes, in slabs of the device and bytes of host memory.

    While it is resident, ``min_slabs`` are guaranteed to its KV (at least 1 all the same), and it
    gets ``max_slabs`` at most. Its weights of ``weight_bytes`` take ``num_slabs`` on the device,
    and ``host_bytes`` in host memory. ``load_s`` is what bringing them from there to the device
    takes, ``fetch_s`` what bringing them there from disk takes, as far as is known; 0: guess.
    ``pinned`` weights stay on the device; ``starts`` is where they are at first, if there is room.
    """

    model: str
    num_slabs: int
    weight_bytes: int
    host_bytes: int
    min_slabs: int
    max_slabs: int
    pinned: bool = False
    starts: Literal["resident", "host", "cold"] = "resident"
    load_s: float = 0.0
    fetch_s: float = 0.0

    @property
    def num_kv_slabs(self) -> int:
        """What its KV is guaranteed while it is resident."""
        return max(1, self.min_slabs)

    @property
    def needed_slabs(self) -> int:
        """What must be free before it is loaded: its weights, and its KV's guarantee."""
        return self.num_slabs + self.num_kv_slabs


class Access(Enum):
    """What may be done with a model now.

    OPEN: its iterations may run, and its sequences be admitted. DRAINING: those that run go on,
    and nobody is admitted. CLEARING: nothing runs; what it has on the device is to be parked or
    dropped. ABSENT: its weights are not on the device; nothing runs, and whatever it still has
    there (after a load that failed late) is to leave as in CLEARING.
    """

    OPEN = auto()
    DRAINING = auto()
    CLEARING = auto()
    ABSENT = auto()


@dataclass(frozen=True, slots=True)
class Demand:
    """A model that has live sequences.

    ``rank`` is that of its best sequence, the lower the better. ``is_waiting``: a sequence waits,
    or is parked, off the device; ``num_on_device`` hold blocks there, or copies of them are under
    way. Its best sequence can't go on before its KV gets ``num_short_slabs`` more slabs, which
    neither are to be had nor will be by what has been done about it: weights might give way.
    ``has_gained``: it loses nothing by leaving, or has had a new token since its weights came.
    """

    model: int
    rank: tuple[float, ...]
    is_waiting: bool
    num_on_device: int
    num_short_slabs: int = 0
    has_gained: bool = True


@dataclass(frozen=True, slots=True)
class WeightFigures:
    """Where a model's weights are, how often they came to the device, and how long it took last.

    ``problem`` is why the last move failed; empty if it didn't.
    """

    state: WeightState
    pinned: bool
    num_loads: int
    load_s: float
    problem: str
