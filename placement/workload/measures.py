"""What a trace is like: rates and burstiness of its models."""

import numpy as np

from placement.workload.trace import FloatArray, Trace


def arrivals_of(trace: Trace, model: int) -> FloatArray:
    """When this model is asked."""
    return np.compress(trace.models == model, trace.arrivals_s)


def rates_per_s(trace: Trace) -> FloatArray:
    """Requests a second of each model."""
    counts = np.bincount(trace.models, minlength=len(trace.names))
    return np.asarray(counts / trace.duration_s, np.float64)


def gap_cvs(trace: Trace) -> FloatArray:
    """The coefficient of variation of each model's gaps; nan with fewer than two gaps."""
    found = np.full(len(trace.names), np.nan)
    for model in range(len(trace.names)):
        gaps_s = np.diff(arrivals_of(trace, model))
        if len(gaps_s) > 1 and gaps_s.any():
            found[model] = gaps_s.std() / gaps_s.mean()
    return found
