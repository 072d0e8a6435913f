"""Means, quantiles and confidence of what simulations gave."""

import math
from collections.abc import Sequence

import numpy as np

from placement.planning.report import Interval, Percentiles
from placement.search.held_out import summary
from placement.workload.trace import FloatArray


def interval(values: Sequence[float]) -> Interval:
    """The mean of shares over seeds and its 95 % confidence interval, within 0 and 1."""
    found = summary(values)
    low, high = found.mean - found.half_width, found.mean + found.half_width
    return Interval(found.mean, max(0.0, low), min(1.0, high), len(values))


def percentiles(values: FloatArray) -> Percentiles:
    """Of those values that are numbers."""
    known = values[np.isfinite(values)]
    if not len(known):
        return Percentiles(math.nan, math.nan, math.nan, math.nan)
    p50, p90, p99 = np.quantile(known, (0.5, 0.9, 0.99))
    return Percentiles(float(known.mean()), float(p50), float(p90), float(p99))
