"""Means, quantiles and confidence of what simulations gave."""

import math
from collections.abc import Sequence

import numpy as np

from placement.planning.report import Interval, Percentiles
from placement.workload.trace import FloatArray

# Student's t, 97.5 %, by degrees of freedom; beyond the last, the normal distribution's.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179)
_NORMAL = 1.96


def interval(values: Sequence[float]) -> Interval:
    """The mean of shares over seeds and its 95 % confidence interval, within 0 and 1."""
    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return Interval(mean, 0.0, 1.0, 1)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half = (_T[count - 2] if count - 2 < len(_T) else _NORMAL) * deviation / math.sqrt(count)
    return Interval(mean, max(0.0, mean - half), min(1.0, mean + half), count)


def percentiles(values: FloatArray) -> Percentiles:
    """Of those values that are numbers."""
    known = values[np.isfinite(values)]
    if not len(known):
        return Percentiles(math.nan, math.nan, math.nan, math.nan)
    p50, p90, p99 = np.quantile(known, (0.5, 0.9, 0.99))
    return Percentiles(float(known.mean()), float(p50), float(p90), float(p99))
