"""Requests and their service times as the request-level simulator takes them."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from placement.workload.trace import FloatArray, IntArray

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class KindRequests:
    """Requests of few kinds: those of one kind take equally long and have one objective.

    ``arrivals_s`` (ascending) and ``kinds`` are of one length, a request each; ``kind_models``
    (the model's number) and ``slo_s`` (from arrival to end) are of one length, a kind each.
    """

    arrivals_s: FloatArray
    kinds: IntArray
    kind_models: IntArray
    slo_s: Float32Array
    num_models: int


@dataclass(frozen=True, slots=True, eq=False)
class ServiceTimes:
    """How long requests of each kind take on a group of each configuration, and what fits there.

    ``stages_s`` ``[num_configs, num_kinds, max_stages]`` is how long a request keeps each stage
    from others, ``num_stages`` ``[num_configs]`` how many there are; infinite: that model can't be
    there. ``delay_s`` ``[num_configs, num_kinds]`` is how much later it ends without keeping
    anything busy, as in a batch whose steps it shares. Everything ends ``overhead_s`` later.
    ``model_bytes`` ``[num_configs, num_models]`` is what a model takes on its fullest device;
    those of a group may sum to ``budget_bytes`` ``[num_configs]``. ``num_devices`` is
    ``[num_configs]``.

    Source: AlpaServe (Li et al., OSDI 2023), section 5, whose requests delay nothing.
    """

    stages_s: Float32Array
    num_stages: IntArray
    delay_s: Float32Array
    overhead_s: float
    model_bytes: FloatArray
    budget_bytes: FloatArray
    num_devices: IntArray
