"""Attainment on requests that the search didn't see, with a confidence interval."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fabric.core.errors import ConfigError
from placement.groups import Group
from placement.simulator.request_level import RequestSimulator
from placement.simulator.service import KindRequests, ServiceTimes

# The 97.5th percentile of Student's t with 1 to 30 degrees of freedom.
T_975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Attainment on fresh requests: the mean, and half the width of its 95 % interval.

    ``each`` is that of each seed.
    """

    mean: float
    half_width: float
    each: tuple[float, ...]

    def __str__(self) -> str:
        return f"{self.mean:.4f} ± {self.half_width:.4f}"


def held_out(
    groups: Sequence[Group],
    times: ServiceTimes,
    make_requests: Callable[[int], KindRequests],
    seeds: Sequence[int] = tuple(range(1, 11)),
    num_uncounted: Callable[[KindRequests], int] | None = None,
) -> HeldOut:
    """Score a placement by fresh requests of each seed.

    Args:
        groups: The placement.
        times: What requests cost.
        make_requests: Makes the requests of a seed; none of them should be the training's.
        seeds: At least one.
        num_uncounted: How many at either end of the requests are in no score; none if not given.

    Raises:
        ConfigError: There are no seeds.
    """
    if not seeds:
        raise ConfigError("held-out attainment needs at least one seed")
    each = []
    for seed in seeds:
        requests = make_requests(seed)
        uncounted = num_uncounted(requests) if num_uncounted else 0
        each.append(RequestSimulator(requests, times, uncounted).score(groups).attainment)
    return summary(each)


def summary(each: Sequence[float]) -> HeldOut:
    """Mean and 95 % interval of independent figures; one alone has an infinite interval."""
    number = len(each)
    if number < 2:
        return HeldOut(float(each[0]), math.inf, tuple(each))
    quantile = T_975[min(number - 1, len(T_975)) - 1]
    half_width = quantile * float(np.std(each, ddof=1)) / math.sqrt(number)
    return HeldOut(float(np.mean(each)), half_width, tuple(each))
