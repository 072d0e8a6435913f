"""Requests as arrays: what workloads make and simulators replay."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """Requests in the order of their arrivals; all arrays are of one length.

    ``arrivals_s`` are seconds from 0 to ``duration_s``, ``models`` are indices into ``names``.
    """

    names: tuple[str, ...]
    duration_s: float
    arrivals_s: FloatArray
    models: IntArray
    prompt_tokens: IntArray
    output_tokens: IntArray

    def __len__(self) -> int:
        return len(self.arrivals_s)
