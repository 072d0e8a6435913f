"""When sharing a pipeline beats a device for each model: closed forms for Poisson arrivals.

Two models of equal rates stand on two devices: either one on each, or both cut into two stages
over both. Nothing is refused. ``load`` is both models' rate times one request's latency on one
device, so 2 devices are saturated at 2.

Source: AlpaServe (Li et al., OSDI 2023), section 3.4 and figure 10.
"""

import math

from fabric.core.errors import ConfigError


def simple_latency_s(rate_per_s: float, latency_s: float) -> float:
    """Mean latency with a device for each model, each an M/D/1 queue of half the rate.

    Raises:
        ConfigError: The devices are saturated.
    """
    return pipeline_latency_s(rate_per_s / 2, latency_s, latency_s)


def pipeline_latency_s(rate_per_s: float, total_s: float, slowest_s: float) -> float:
    """Mean latency of a pipeline whose stages take ``total_s`` in all, ``slowest_s`` at most.

    With fixed stage times a request waits as if there was the slowest stage alone.

    Raises:
        ConfigError: The slowest stage is saturated.
    """
    busy = rate_per_s * slowest_s
    if not 0 <= busy < 1:
        raise ConfigError(f"{rate_per_s} requests/s of {slowest_s} s keep a stage busy {busy:.2f}")
    return total_s + busy * slowest_s / (2 * (1 - busy))


def max_overhead(load: float) -> float:
    """How much longer the cut model may take, evenly in both stages, before sharing is slower.

    Raises:
        ConfigError: ``load`` is not from 0 to below 2.
    """
    check_load(load)
    simple = (4 - load) / (4 - 2 * load)
    linear = 8 + 4 * load * simple
    # The lesser root of 3 load x^2 - linear x + 8 simple, in the form that holds at no load too.
    return 16 * simple / (linear + math.sqrt(linear**2 - 96 * load * simple))


def max_imbalance(load: float) -> float:
    """How many times half of the latency the slower stage may take before sharing is slower.

    Raises:
        ConfigError: ``load`` is not from 0 to below 2.
    """
    check_load(load)
    return (math.sqrt(8 - 4 * load + load**2) - load) / (2 - load)


def check_load(load: float) -> None:
    """Raise ConfigError unless two devices bear the load."""
    if not 0 <= load < 2:
        raise ConfigError(f"load is {load}; at least 0 and below 2 is needed for 2 devices")
