"""How a total rate is divided among models."""

import numpy as np

from fabric.core.errors import ConfigError
from placement.workload.arrivals import check_number
from placement.workload.trace import FloatArray


def power_law_rates(rate_per_s: float, num_models: int, exponent: float = 0.5) -> FloatArray:
    """Model ``i``, from 0, has a rate in proportion to ``(i + 1) ** -exponent``; 0 is uniform.

    Raises:
        ConfigError: The rate or the exponent is below 0, or there is no model.

    Source: AlpaServe (Li et al., OSDI 2023), section 6: exponent 0.5.
    """
    check_number("exponent", exponent)
    places = np.arange(1, num_models + 1, dtype=np.float64)
    return shared_rates(rate_per_s, np.asarray(places**-exponent, np.float64))


def shared_rates(rate_per_s: float, weights: FloatArray) -> FloatArray:
    """Rates in proportion to weights, that sum to ``rate_per_s``.

    Raises:
        ConfigError: The rate is below 0, or no weight is above 0.
    """
    check_number("rate_per_s", rate_per_s)
    for weight in weights:
        check_number("weight", float(weight))
    if not np.any(weights):
        raise ConfigError("no model has a weight above 0")
    return rate_per_s * weights / np.sum(weights)
