"""Requests of all lengths as few kinds, which request-level simulation needs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fabric.core.errors import ConfigError
from fabric.core.request import Objectives
from placement.simulator.service import KindRequests
from placement.workload.trace import FloatArray, IntArray, Trace


@dataclass(frozen=True, slots=True, eq=False)
class RequestKinds:
    """A trace's requests by kind; those of one are of one model and of similar lengths.

    ``kinds`` has each request's. Of each kind, ascending by model: ``models`` has its number,
    ``prompt_tokens`` and ``output_tokens`` the mean lengths, ``counts`` how many requests it has.
    """

    trace: Trace
    kinds: IntArray
    models: IntArray
    prompt_tokens: FloatArray
    output_tokens: FloatArray
    counts: IntArray

    def __len__(self) -> int:
        return len(self.models)

    def with_slos(self, slo_s: FloatArray) -> KindRequests:
        """The requests as the simulator takes them, with the kinds' times from arrival to end."""
        return KindRequests(
            self.trace.arrivals_s,
            self.kinds,
            self.models,
            slo_s.astype(np.float32),
            len(self.trace.names),
        )

    def slo_s(self, objectives: Sequence[Objectives]) -> FloatArray:
        """From arrival to end, what each kind's model's objectives leave it; infinite if nothing.

        A request that has its first token in time, and each one after it, ends in time.

        Raises:
            ConfigError: There are not objectives for each model.
        """
        if len(objectives) != len(self.trace.names):
            raise ConfigError(
                f"there are {len(self.trace.names)} models and objectives of {len(objectives)}"
            )
        found = np.full(len(self), np.inf)
        for kind, model in enumerate(self.models):
            one = objectives[model]
            if one.e2e_s is not None:
                found[kind] = one.e2e_s
            if one.ttft_s is not None and one.tpot_s is not None:
                rest = max(self.output_tokens[kind] - 1.0, 0.0)
                found[kind] = min(found[kind], one.ttft_s + one.tpot_s * rest)
        return found


def kinds_of(
    trace: Trace, num_prompt_buckets: int = 4, num_output_buckets: int = 4
) -> RequestKinds:
    """Sort requests into buckets of about as many: by prompt, and within these by output.

    No model has more kinds than the product of the two numbers; equal lengths are of one kind.

    Raises:
        ConfigError: A number of buckets is below 1.
    """
    for name, number in (("prompt", num_prompt_buckets), ("output", num_output_buckets)):
        if number < 1:
            raise ConfigError(f"num_{name}_buckets is {number}; at least 1 is needed")
    width = num_prompt_buckets * num_output_buckets
    cells = np.zeros(len(trace), np.int64)
    for model in range(len(trace.names)):
        own = np.flatnonzero(trace.models == model)
        rows = _buckets(trace.prompt_tokens[own], num_prompt_buckets)
        for row in range(num_prompt_buckets):
            here = own[rows == row]
            columns = _buckets(trace.output_tokens[here], num_output_buckets)
            cells[here] = model * width + row * num_output_buckets + columns
    used, kinds, counts = np.unique(cells, return_inverse=True, return_counts=True)

    def means(tokens: IntArray) -> FloatArray:
        return np.asarray(np.bincount(kinds, tokens, len(used)) / counts, np.float64)

    return RequestKinds(
        trace,
        kinds.astype(np.int32),
        (used // width).astype(np.int32),
        means(trace.prompt_tokens),
        means(trace.output_tokens),
        counts.astype(np.int32),
    )


def _buckets(tokens: IntArray, num_buckets: int) -> npt.NDArray[np.int64]:
    """The bucket of each number: between quantiles, so that equal ones share one."""
    if not len(tokens):
        return np.empty(0, np.int64)
    shares = np.arange(1, num_buckets) / num_buckets
    bounds = np.quantile(tokens, shares, method="inverted_cdf")
    return np.searchsorted(bounds, tokens).astype(np.int64)
