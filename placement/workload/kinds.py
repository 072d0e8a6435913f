"""Requests of all lengths as few kinds, which request-level simulation needs."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fabric.core.errors import ConfigError
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
