"""Buckets of models that take about as long, so that no short request waits for long ones."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from placement.search.problem import Problem

MAX_DIFFERENCE = 0.38
# Shares of devices are narrowed to those near the buckets' shares of the load, in these steps.
TOLERANCES = (1.0, 0.5, 0.3, 0.2, 0.1)
MAX_SHARES = 100


def latency_buckets(problem: Problem, max_difference: float = MAX_DIFFERENCE) -> list[list[int]]:
    """Models by what they take alone on the fewest devices: each joins a bucket that is near.

    A bucket takes models down to ``max_difference`` less than its slowest, as a share of that. The
    slowest bucket comes first.

    Source: AlpaServe (Li et al., OSDI 2023), algorithm 2, and its code for the 38 %.
    """
    latency_s = alone_s(problem)
    buckets: list[list[int]] = []
    for model in sorted(range(problem.num_models), key=lambda model: -latency_s[model]):
        if buckets and latency_s[model] >= (1.0 - max_difference) * latency_s[buckets[-1][0]]:
            buckets[-1].append(model)
        else:
            buckets.append([model])
    return [sorted(bucket) for bucket in buckets]


def alone_s(problem: Problem) -> list[float]:
    """Seconds of each model's mean request on the fewest devices that can run it."""
    latency_s = problem.model_latency_s
    by_size = sorted(range(problem.num_configs), key=lambda config: problem.sizes[config])
    alone = []
    for model in range(problem.num_models):
        possible = (
            float(latency_s[config, model])
            for config in by_size
            if problem.model_bytes[config][model] <= problem.budget_bytes[config]
        )
        alone.append(next(possible, float("inf")))
    return alone


def neighbouring_unions(buckets: Sequence[list[int]]) -> Iterator[list[list[int]]]:
    """Every way to join buckets that are next to each other."""
    if not buckets:
        yield []
        return
    for size in range(1, len(buckets) + 1):
        union = sorted(model for bucket in buckets[:size] for model in bucket)
        for rest in neighbouring_unions(buckets[size:]):
            yield [union, *rest]


def shares(num_devices: int, num_buckets: int, step: int = 1) -> Iterator[tuple[int, ...]]:
    """Every way to give each bucket at least ``step`` devices, by multiples of it."""
    if num_buckets == 1:
        yield (num_devices,)
        return
    for first in range(step, num_devices - step * (num_buckets - 1) + 1, step):
        for rest in shares(num_devices - first, num_buckets - 1, step):
            yield (first, *rest)


def shares_near_load(
    problem: Problem, buckets: Sequence[list[int]], num_devices: int
) -> list[tuple[int, ...]]:
    """Shares of devices that are near the buckets' shares of requests times their latency.

    The tolerance is lowered until fewer than ``MAX_SHARES`` are left.

    Source: AlpaServe (Li et al., OSDI 2023), its code's reading of algorithm 2.
    """
    latency_s = np.array([np.mean([alone_s(problem)[model] for model in one]) for one in buckets])
    rates = np.array([problem.model_counts[one].sum() for one in buckets])
    rates /= max(1e-9, rates.sum())
    kept = list(shares(num_devices, len(buckets)))
    for tolerance in TOLERANCES:
        if len(kept) < MAX_SHARES:
            break
        kept = [one for one in kept if distance(np.array(one) / latency_s, rates) <= tolerance]
    return kept


def distance(capacities: np.ndarray, rates: np.ndarray) -> float:
    """The largest difference between shares of capacity and of requests."""
    return float(np.abs(capacities / capacities.sum() - rates).max())


def best_shares(
    value: Callable[[int, int], float], num_buckets: int, num_devices: int, step: int
) -> tuple[float, tuple[int, ...]]:
    """The shares of devices whose values sum to most, each bucket at least ``step`` devices.

    Args:
        value: Of a bucket's number and its devices.
        num_buckets: How many share the devices.
        num_devices: All of them; what is no multiple of ``step`` goes to the last bucket.
        step: Shares are multiples of it.
    """
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    for bucket in range(num_buckets - 1):
        after: dict[int, tuple[float, tuple[int, ...]]] = {}
        for used, (total, given) in best.items():
            for share in range(
                step, num_devices - used - step * (num_buckets - 1 - bucket) + 1, step
            ):
                found = (total + value(bucket, share), (*given, share))
                if used + share not in after or found > after[used + share]:
                    after[used + share] = found
        best = after
    last = num_buckets - 1
    return max(
        (total + value(last, num_devices - used), (*given, num_devices - used))
        for used, (total, given) in best.items()
    )
