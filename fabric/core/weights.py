"""Where a model's weights are, and what is to be done about it."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

# How the weights of linear layers are stored: in the model's dtype, or as integers.
Quantization = Literal["none", "int8", "int4"]


class WeightState(StrEnum):
    """Where a model's weights are, on all ranks of its device group.

    COLD: on disk only. FETCHING: on their way into host memory. HOST: in host memory, laid out as
    the device wants them, once for all processes of a host. LOADING: on their way to the device,
    layer by layer; iterations may begin before the last layer is there. RESIDENT: on the device.
    """

    COLD = "cold"
    FETCHING = "fetching"
    HOST = "host"
    LOADING = "loading"
    RESIDENT = "resident"


class WeightMove(StrEnum):
    """What workers can do with a model's weights.

    FETCH: bring them from disk into host memory. LOAD: copy them from there to the device, from
    disk if need be. EVICT: free their device memory. DROP: let go of them in host memory.
    """

    FETCH = "fetch"
    LOAD = "load"
    EVICT = "evict"
    DROP = "drop"


@dataclass(frozen=True, slots=True)
class WeightOrder:
    """One move of one model's weights; ``model`` is its place among the group's models.

    Every FETCH and LOAD gets results under its ``number``, which is never used again. EVICT and
    DROP are over when the worker goes on to the next thing, and get none.
    """

    number: int
    model: int
    move: WeightMove


@dataclass(frozen=True, slots=True)
class WeightResult:
    """How a FETCH or a LOAD stands.

    A LOAD gets two: one that is not ``is_last`` when its first layers are on the device, so that
    an iteration may begin, then the last one. After an error, which is always last, the weights
    are where they were before. ``num_bytes`` were moved in ``seconds``.
    """

    number: int
    error: str = ""
    num_bytes: int = 0
    seconds: float = 0.0
    is_last: bool = True
