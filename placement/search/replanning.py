"""Clockwork++: a new placement for each interval, known in advance, at no cost of swapping."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fabric.core.errors import ConfigError
from placement.search.policies import Policy, SelectiveReplication
from placement.search.problem import Groups, Problem
from placement.simulator.request_level import RequestSimulator
from placement.simulator.service import KindRequests


@dataclass(frozen=True, slots=True)
class Schedule:
    """Placements and when each begins, in seconds; ``attainment`` is that of all requests."""

    name: str
    starts_s: tuple[float, ...]
    placements: tuple[Groups, ...]
    attainment: float


def replan(
    problem: Problem, requests: KindRequests, window_s: float, policy: Policy | None = None
) -> Schedule:
    """Plan each window of the requests that will be served, for these very requests.

    What real systems can't: it knows the future, and swaps and loads models in no time. Groups
    begin each window idle.

    Args:
        problem: Its configurations, costs and devices; its requests don't matter.
        requests: What will be served.
        window_s: Seconds that each placement stays.
        policy: Plans each window; selective replication if not given.

    Raises:
        ConfigError: The window isn't above 0.

    Source: AlpaServe (Li et al., OSDI 2023), section 6.2, the baseline "Clockwork++".
    """
    if not window_s > 0:
        raise ConfigError(f"window_s is {window_s}; it must be above 0")
    planner = policy or SelectiveReplication()
    starts, placements, num_met = [], [], 0
    for start, part in windows(requests, window_s):
        groups = planner.place(replace(problem, requests=part))
        score = RequestSimulator(part, problem.times).score(groups)
        starts.append(start)
        placements.append(groups)
        num_met += int(score.num_met.sum())
    attainment = num_met / max(1, len(requests.arrivals_s))
    name = f"sr-replace-{window_s:g}" if policy is None else f"{planner.name}-each-{window_s:g}"
    return Schedule(name, tuple(starts), tuple(placements), attainment)


def windows(requests: KindRequests, window_s: float) -> Sequence[tuple[float, KindRequests]]:
    """Where each window begins, and its requests; those without any are left out."""
    if len(requests.arrivals_s) == 0:
        return []
    numbers = (requests.arrivals_s // window_s).astype(np.int64)
    found = []
    for number in np.unique(numbers):
        mine = numbers == number
        part = replace(requests, arrivals_s=requests.arrivals_s[mine], kinds=requests.kinds[mine])
        found.append((float(number) * window_s, part))
    return found
