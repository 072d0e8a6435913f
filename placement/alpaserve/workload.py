"""AlpaServe's arrivals, the same to the bit: Gamma processes of power-law rates.

Models draw from NumPy's legacy generator, each seeded with its own number, so that a placement's
published attainment can be replayed on the very requests it was computed for.
"""

import numpy as np

from fabric.core.errors import ConfigError
from placement.workload.trace import FloatArray, IntArray

POPULARITY_EXPONENT = 0.5
EDGE_S = 10.0


def power_law_rates(num_models: int, rate_per_s: float) -> FloatArray:
    """Rates that sum to ``rate_per_s`` and fall with the square root of a model's number."""
    weights = np.array([(index + 1) ** -POPULARITY_EXPONENT for index in range(num_models)])
    return np.asarray(rate_per_s * weights / weights.sum(), dtype=np.float64)


def gamma_arrivals(rate_per_s: float, cv: float, duration_s: float, seed: int) -> FloatArray:
    """Arrivals before ``duration_s``, the first one gap after 0.

    Raises:
        ConfigError: The rate, the coefficient of variation or the duration isn't positive.
    """
    for name, value in (("rate_per_s", rate_per_s), ("cv", cv), ("duration_s", duration_s)):
        if not value > 0:
            raise ConfigError(f"{name} is {value}; it must be above 0")
    generator = np.random.RandomState(seed)
    num_gaps = max(16, int(1.2 * rate_per_s * duration_s))
    arrivals = np.zeros(1)
    # How many gaps are drawn at once doesn't change them.
    while arrivals[-1] < duration_s:
        gaps = generator.gamma(1.0 / cv**2, cv * cv / rate_per_s, size=num_gaps)
        more = np.cumsum(np.concatenate([arrivals[-1:], gaps]))
        arrivals = np.concatenate([arrivals, more[1:]])
    return arrivals[1 : np.searchsorted(arrivals, duration_s)]


def merged_arrivals(
    rates_per_s: FloatArray, cv: float, duration_s: float, seed: int = 0
) -> tuple[FloatArray, IntArray]:
    """All models' arrivals in order, and the model of each; model i is seeded with ``seed`` + i.

    The published placements were tested with seed 0.
    """
    each = [
        gamma_arrivals(float(rate), cv, duration_s, seed + model)
        for model, rate in enumerate(rates_per_s)
    ]
    arrivals = np.concatenate(each)
    models = np.repeat(np.arange(len(each), dtype=np.int32), [len(one) for one in each])
    order = np.argsort(arrivals, kind="stable")
    return arrivals[order], models[order]


def num_edge_requests(arrivals_s: FloatArray) -> int:
    """Requests at either end that attainment leaves out: about ten seconds' worth."""
    if len(arrivals_s) < 2:
        return 0
    num_requests = int(EDGE_S / float(arrivals_s[-1] - arrivals_s[0]) * len(arrivals_s))
    return min(num_requests, len(arrivals_s) // 2)
