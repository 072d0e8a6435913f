"""Arrivals drawn anew from processes that are fitted to the windows of recorded ones."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from placement.workload.arrivals import GammaArrivals, check_number
from placement.workload.generate import generator, merged
from placement.workload.trace import FloatArray, IntArray, Trace

MOST_ABOVE_EMPIRICAL = 5.0


@dataclass(frozen=True, slots=True)
class Refit:
    """How windows are drawn anew.

    ``fit``: "gamma" looks at the gaps, for the likeliest Gamma process of each window; "counts"
    only at how many requests a window has, as their gaps' coefficient of variation is 1. Rates
    and coefficients of variation are multiplied by the scales.

    Windows keep their counts in the mean: the rate is that of their requests, and a process is
    under way when its window begins. With ``as_alpaserve`` it is the fitted one, unless that is
    more than five times as high, and each window begins with a whole gap.

    Raises:
        ConfigError: A number is not above 0.

    Source: AlpaServe (Li et al., OSDI 2023), section 6.2: "counts" in windows of 60 s for the
    Azure functions of 2019, "gamma" in windows of 5400 s for those of 2021.
    """

    window_s: float
    fit: Literal["gamma", "counts"] = "gamma"
    rate_scale: float = 1.0
    cv_scale: float = 1.0
    as_alpaserve: bool = False

    def __post_init__(self) -> None:
        for name in ("window_s", "rate_scale", "cv_scale"):
            check_number(name, getattr(self, name), is_positive=True)


def refit_trace(trace: Trace, refit: Refit, seed: int) -> Trace:
    """Draw each model's arrivals anew, window by window.

    The lengths of new requests are those of requests to the model in the same window.
    """
    num_models = len(trace.names)
    drawn = [_refit_model(trace, model, refit, seed) for model in range(num_models)]
    arrivals = [times_s for times_s, _ in drawn]
    prompts = [trace.prompt_tokens[places] for _, places in drawn]
    outputs = [trace.output_tokens[places] for _, places in drawn]
    return merged(trace.names, trace.duration_s, arrivals, prompts, outputs)


def _refit_model(trace: Trace, model: int, refit: Refit, seed: int) -> tuple[FloatArray, IntArray]:
    """New arrivals of a model, and which old request each has the lengths of."""
    rng = generator(seed, model, "refit")
    own = np.flatnonzero(trace.models == model)
    starts_s = np.arange(0.0, trace.duration_s, refit.window_s)
    bounds = np.searchsorted(trace.arrivals_s[own], np.append(starts_s, trace.duration_s))
    bounds[-1] = len(own)
    times, places = [np.empty(0)], [np.empty(0, np.intp)]
    for window in np.flatnonzero(np.diff(bounds)):
        start_s = float(starts_s[window])
        length_s = min(refit.window_s, trace.duration_s - start_s)
        here = own[bounds[window] : bounds[window + 1]]
        process = _fitted(trace.arrivals_s[here], length_s, refit)
        arrivals_s = start_s + process.draw(rng, length_s)
        times.append(arrivals_s)
        places.append(rng.choice(here, len(arrivals_s)))
    return np.concatenate(times), np.concatenate(places).astype(np.int32)


def _fitted(arrivals_s: FloatArray, window_s: float, refit: Refit) -> GammaArrivals:
    rate_per_s, cv = len(arrivals_s) / window_s, 1.0
    if refit.fit == "gamma" and len(arrivals_s) > 2 and arrivals_s[0] < arrivals_s[-1]:
        fitted_per_s, cv = fit_gamma(_gaps_s(arrivals_s))
        # A burst in an empty window has a rate that the window hasn't.
        if refit.as_alpaserve and fitted_per_s <= MOST_ABOVE_EMPIRICAL * rate_per_s:
            rate_per_s = fitted_per_s
    return process_of(rate_per_s, cv, refit)


def _gaps_s(arrivals_s: FloatArray) -> FloatArray:
    """The gaps, in any order, as if those of one time were spread over a step of the clock.

    No Gamma process has two arrivals at a time. The step is the shortest gap that isn't 0.
    """
    times_s, counts = np.unique(arrivals_s, return_counts=True)
    steps_s = np.diff(times_s)
    parts_s = steps_s.min() / counts
    within_s = np.repeat(parts_s, counts - 1)
    between_s = steps_s - (parts_s * (counts - 1))[:-1]
    return np.concatenate([within_s, between_s])


def process_of(rate_per_s: float, cv: float, refit: Refit) -> GammaArrivals:
    """A Gamma process with the scales applied."""
    return GammaArrivals(rate_per_s * refit.rate_scale, cv * refit.cv_scale, refit.as_alpaserve)


def fit_gamma(gaps_s: FloatArray) -> tuple[float, float]:
    """The likeliest Gamma process for gaps: its rate, and its coefficient of variation.

    Gaps are above 0; equal ones have a coefficient near 0.

    Source: Minka, Estimating a Gamma distribution (2002): Newton steps for the shape.
    """
    # Loading it takes longer than most plans, which fit nothing.
    from scipy.special import digamma, polygamma

    mean_s = float(gaps_s.mean())
    spread = max(float(np.log(mean_s) - np.log(gaps_s).mean()), 1e-9)
    shape = (3.0 - spread + np.sqrt((spread - 3.0) ** 2 + 24.0 * spread)) / (12.0 * spread)
    for _ in range(8):
        slope = 1.0 / shape - float(polygamma(1, shape))
        change = (np.log(shape) - float(digamma(shape)) - spread) / (shape**2 * slope)
        shape = 1.0 / (1.0 / shape + change)
    return 1.0 / mean_s, float(shape**-0.5)
