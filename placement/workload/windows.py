"""Parts of a trace: to plan on one and test on another, or to plan anew for each."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np

from fabric.core.errors import ConfigError
from placement.workload.arrivals import check_number
from placement.workload.trace import Trace


def cut(trace: Trace, start_s: float, end_s: float) -> Trace:
    """The requests from ``start_s`` to before ``end_s``; times count from ``start_s``.

    Raises:
        ConfigError: There is no time between these.
    """
    if not 0.0 <= start_s < end_s:
        raise ConfigError(f"{start_s} s to {end_s} s is no part of a trace; it must be from 0 up")
    first, last = np.searchsorted(trace.arrivals_s, (start_s, end_s))
    # A request at the very end of a trace is of its last part.
    here = slice(int(first), int(last) if end_s < trace.duration_s else len(trace))
    return Trace(
        trace.names,
        end_s - start_s,
        trace.arrivals_s[here] - start_s,
        trace.models[here],
        trace.prompt_tokens[here],
        trace.output_tokens[here],
    )


def windows(trace: Trace, window_s: float) -> tuple[Trace, ...]:
    """Parts of ``window_s`` one after another; the last one is what is left.

    Source: AlpaServe (Li et al., OSDI 2023), section 6.2: Clockwork++ places anew for each.
    """
    check_number("window_s", window_s, is_positive=True)
    num_windows = math.ceil(trace.duration_s / window_s)
    bounds = [*(i * window_s for i in range(num_windows)), trace.duration_s]
    return tuple(cut(trace, a, b) for a, b in pairwise(bounds))


def split(trace: Trace, share: float) -> tuple[Trace, Trace]:
    """The first ``share`` of the time to plan on, and the rest to test on.

    Raises:
        ConfigError: The share is not between 0 and 1.
    """
    if not 0.0 < share < 1.0:
        raise ConfigError(f"train_share is {share}; more than 0 and less than 1 is needed")
    at_s = trace.duration_s * share
    return cut(trace, 0.0, at_s), cut(trace, at_s, trace.duration_s)


def train_test_windows(
    trace: Trace, window_s: float, num_pairs: int, seed: int
) -> tuple[tuple[Trace, Trace], ...]:
    """Pairs of different windows at random: to plan on the first and test on the second.

    Raises:
        ConfigError: The trace has no two whole windows.

    Source: AlpaServe (Li et al., OSDI 2023), section 6.4: robustness to changing traffic.
    """
    check_number("window_s", window_s, is_positive=True)
    num_windows = int(trace.duration_s / window_s)
    if num_windows < 2:
        raise ConfigError(
            f"a trace of {trace.duration_s} s has {num_windows} windows of {window_s} s; "
            "at least 2 are needed"
        )
    rng = np.random.default_rng(seed)
    chosen = [rng.choice(num_windows, 2, replace=False) for _ in range(num_pairs)]
    parts = [[cut(trace, i * window_s, (i + 1) * window_s) for i in pair] for pair in chosen]
    return tuple((train, test) for train, test in parts)


def scale_rate(trace: Trace, factor: float) -> Trace:
    """The same requests ``factor`` times as fast: it ends so much earlier.

    Raises:
        ConfigError: The factor is not above 0.
    """
    check_number("rate_scale", factor, is_positive=True)
    return replace(
        trace, duration_s=trace.duration_s / factor, arrivals_s=trace.arrivals_s / factor
    )
