"""Traces that are drawn by a seed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from placement.workload.arrivals import ArrivalProcess, check_number
from placement.workload.lengths import Lengths
from placement.workload.trace import FloatArray, IntArray, Trace


@dataclass(frozen=True, slots=True)
class ModelWorkload:
    """What one model is asked: when, and for how much."""

    model: str
    arrivals: ArrivalProcess
    lengths: Lengths


def generate_trace(workloads: Sequence[ModelWorkload], duration_s: float, seed: int) -> Trace:
    """Draw the requests of several models.

    Each model draws from generators of its own: the others' requests stay as they are when one's
    workload changes.

    Args:
        workloads: One for each model; their order gives the models' numbers.
        duration_s: Of the trace.
        seed: Equal seeds give equal traces.

    Raises:
        ConfigError: The duration is not above 0.
    """
    check_number("duration_s", duration_s, is_positive=True)
    arrivals = [
        each.arrivals.draw(generator(seed, place, "arrivals"), duration_s)
        for place, each in enumerate(workloads)
    ]
    return with_lengths(workloads, duration_s, arrivals, seed)


def with_lengths(
    workloads: Sequence[ModelWorkload], duration_s: float, arrivals: Sequence[FloatArray], seed: int
) -> Trace:
    """Give arrivals of each model lengths; the workloads' own arrivals are not looked at."""
    drawn = [
        each.lengths.draw(generator(seed, place, "lengths"), len(arrivals[place]))
        for place, each in enumerate(workloads)
    ]
    return merged(
        tuple(each.model for each in workloads),
        duration_s,
        arrivals,
        [prompts for prompts, _ in drawn],
        [outputs for _, outputs in drawn],
    )


def merged(
    names: tuple[str, ...],
    duration_s: float,
    arrivals: Sequence[FloatArray],
    prompts: Sequence[IntArray],
    outputs: Sequence[IntArray],
) -> Trace:
    """One trace of each model's requests, in the order of arrival; models in order if equal."""
    times_s = np.concatenate([np.empty(0), *arrivals])
    order = np.argsort(times_s, kind="stable")
    models = np.repeat(np.arange(len(names), dtype=np.int32), [len(each) for each in arrivals])
    none = np.empty(0, np.int32)
    return Trace(
        names,
        duration_s,
        times_s[order],
        models[order],
        np.concatenate([none, *prompts])[order],
        np.concatenate([none, *outputs])[order],
    )


def generator(seed: int, place: int, purpose: str) -> np.random.Generator:
    """A generator of its own for each seed, place and purpose."""
    return np.random.default_rng([seed, place, *purpose.encode()])
