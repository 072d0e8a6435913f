"""What queueing theory says of requests that all take the same time, on a device each or in a pipe.

A pipeline of deterministic stages, first come, first served, is a queue in front of its slowest
stage: a request takes ``alone_s``, the sum of the stages, and waits as in a queue of one server
that takes ``interval_s``, the slowest stage, for each. One device is the same with both equal.

Source: AlpaServe (Li et al., OSDI 2023), section 3.4 and figure 10; mms, W_simple and W_pipe.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Service:
    """Seconds of a request that is alone, and from one to the next when requests wait."""

    alone_s: float
    interval_s: float


def poisson_latency_s(service: Service, rate_per_s: float) -> float:
    """Mean latency of Poisson arrivals (M/D/1): ``alone_s`` and the mean wait."""
    busy = rate_per_s * service.interval_s
    if busy >= 1.0:
        return float("inf")
    return service.alone_s + busy * service.interval_s / (2.0 * (1.0 - busy))


def split_latency_s(service: Service, rates_per_s: Sequence[float]) -> float:
    """Mean latency over all requests of Poisson arrivals to a device for each of the rates."""
    total = sum(rates_per_s)
    return sum(rate / total * poisson_latency_s(service, rate) for rate in rates_per_s)


def simulate_latencies_s(service: Service, arrivals_s: Sequence[float]) -> list[float]:
    """The exact latencies of these arrivals, which are in order, first come, first served."""
    latencies_s, free_s = [], float("-inf")
    for arrival_s in arrivals_s:
        start_s = max(arrival_s, free_s)
        free_s = start_s + service.interval_s
        latencies_s.append(start_s - arrival_s + service.alone_s)
    return latencies_s
