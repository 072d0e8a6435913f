"""When a benchmark's requests come, and how long they are: drawn by a seed, or from a trace."""

import itertools
import random
from collections.abc import Iterable

from fabric.core.traces import Arrival


def gamma_arrivals(num_requests: int, rate_per_s: float, cv: float, seed: int) -> list[float]:
    """Draw arrival times whose gaps are gamma distributed; the first is at 0.

    Args:
        num_requests: How many.
        rate_per_s: Mean rate; ``inf`` sends everything at once.
        cv: Coefficient of variation of the gaps: 0 is a clock, 1 Poisson, more is bursty.
        seed: Makes the draw repeatable.

    Source: AlpaServe (Li et al., OSDI 2023), section 6: Gamma arrival processes.
    """
    if num_requests == 0:
        return []
    mean_s = 1.0 / rate_per_s
    if cv == 0 or mean_s == 0:
        return [i * mean_s for i in range(num_requests)]
    shape, rng = 1.0 / cv**2, random.Random(seed)
    gaps = (rng.gammavariate(shape, mean_s / shape) for _ in range(num_requests - 1))
    return list(itertools.accumulate(gaps, initial=0.0))


def fit_trace(
    trace: Iterable[Arrival], num_requests: int, scale: float, max_input: int, max_output: int
) -> list[Arrival]:
    """Take a trace's first requests; multiply their times by ``scale`` and cap their lengths."""
    return [
        Arrival(
            row.at_s * scale,
            min(max(row.input_len, 1), max_input),
            min(max(row.output_len, 1), max_output),
        )
        for row in itertools.islice(trace, num_requests)
    ]
