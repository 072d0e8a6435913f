"""What became of each request of a trace: the same of simulations and of measurements."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fabric.core.request import Objectives
from placement.workload.trace import FloatArray, IntArray, Trace

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """A trace's requests, in its order: seconds after arrival; nan for what never came.

    ``num_tokens`` came out of each; ``groups`` says where each was sent, -1 if it was refused.
    """

    trace: Trace
    ttft_s: FloatArray
    e2e_s: FloatArray
    num_tokens: IntArray
    groups: IntArray

    @property
    def tpot_s(self) -> FloatArray:
        """Seconds for each token after the first; nan with fewer than two."""
        rest = np.where(self.num_tokens > 1, self.num_tokens - 1, np.nan)
        return (self.e2e_s - self.ttft_s) / rest

    def is_met(self, objectives: tuple[Objectives, ...]) -> BoolArray:
        """Which requests met all of their model's objectives; one of them for each model."""
        met = np.isfinite(self.e2e_s)
        for name in ("ttft_s", "tpot_s", "e2e_s"):
            limits = np.array([getattr(one, name) or np.inf for one in objectives])
            values = getattr(self, name)
            met &= np.isnan(values) | (values <= limits[self.trace.models])
        return met

    def attainment(self, objectives: tuple[Objectives, ...]) -> float:
        """The share of all requests whose model's objectives were met; one for each model."""
        return float(self.is_met(objectives).mean()) if len(self.trace) else 1.0
