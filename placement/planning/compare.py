"""Placement policies side by side, on requests that none of them has seen."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fabric.core.errors import ConfigError
from placement.config.schema import PlanInput
from placement.groups import Group
from placement.planning.plan import run_search
from placement.planning.problem import Planning, planning_of
from placement.planning.report import PolicyRow
from placement.planning.statistics import interval
from placement.search.policies import (
    FastHeuristic,
    OneModelEach,
    Policy,
    RoundRobin,
    SelectiveReplication,
)
from placement.search.policies_buckets import SeparatedSearch
from placement.search.problem import Groups, Problem
from placement.search.replanning import Schedule, replan
from placement.simulator.request_level import RequestSimulator

OURS, CLOCKWORK = "ours", "clockwork++"
# AlpaServe's interval for the Azure functions of 2019.
CLOCKWORK_WINDOW_S = 60.0
POLICIES: dict[str, Callable[[Problem], Policy]] = {
    "alpaserve": lambda problem: _alpaserve(problem),
    "alpaserve-fast": lambda problem: FastHeuristic(),
    "selective-replication": lambda problem: SelectiveReplication(),
    "round-robin": lambda problem: RoundRobin(_longest_pipeline(problem)),
    "one-model-each": lambda problem: _one_model_each(problem),
}
POLICY_NAMES = (OURS, *POLICIES, CLOCKWORK)
Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Placed:
    """What a policy has decided on, and what it attains of the training requests."""

    groups: Groups
    training: float
    seconds: float


def compare_policies(
    inputs: PlanInput, policies: Sequence[str] | None, progress: Progress
) -> tuple[PolicyRow, ...]:
    """Let each policy place the models, and score it by requests of other seeds.

    ``clockwork++`` places anew for each minute of the very requests that it is scored by, and
    loads models in no time: what no real system can.

    Args:
        inputs: What the user says.
        policies: Their names; all if not given.
        progress: Told what is being done.

    Raises:
        ConfigError: There is no such policy, or it can't place anything on these devices.
    """
    names = policies or POLICY_NAMES
    check_policies(names)
    planning = planning_of(inputs)
    rows = []
    for number, name in enumerate(names):
        progress(name, number / len(names))
        rows.append(_row(planning, name))
    return tuple(rows)


def check_policies(names: Sequence[str]) -> None:
    """Raise ConfigError if there is no policy of one of the names."""
    for name in names:
        if name not in POLICY_NAMES:
            raise ConfigError(f"no policy is called {name!r}; allowed: {', '.join(POLICY_NAMES)}")


def held_out_by(planning: Planning, name: str) -> list[float]:
    """What a policy attains of each held-out trace."""
    if name == CLOCKWORK:
        return [_clockwork(problem).attainment for problem in planning.held_out_problems]
    return planning.held_out_attainment(place(planning, name).groups)


def place(planning: Planning, name: str) -> Placed:
    """What a policy decides by the training requests."""
    start_s = time.perf_counter()
    if name == OURS:
        found = run_search(planning, lambda what, done: None, hosts_all=False)
        return Placed(found.groups, found.attainment, time.perf_counter() - start_s)
    problem = planning.problem
    groups = POLICIES[name](problem).place(problem)
    seconds = time.perf_counter() - start_s
    return Placed(groups, _attained(problem, groups), seconds)


def _row(planning: Planning, name: str) -> PolicyRow:
    if name != CLOCKWORK:
        placed = place(planning, name)
        replicas = sum(len(group.models) for group in placed.groups)
        held_out = interval(planning.held_out_attainment(placed.groups))
        return PolicyRow(
            name, len(placed.groups), replicas, placed.training, held_out, placed.seconds
        )
    start_s = time.perf_counter()
    training = _clockwork(planning.problem)
    seconds = time.perf_counter() - start_s
    sizes = [
        (len(groups), sum(len(group.models) for group in groups)) for groups in training.placements
    ]
    num_groups, num_replicas = (round(float(mean)) for mean in np.mean(sizes, axis=0))
    held_out = interval(held_out_by(planning, name))
    return PolicyRow(name, num_groups, num_replicas, training.attainment, held_out, seconds)


def _clockwork(problem: Problem) -> Schedule:
    return replan(problem, problem.requests, CLOCKWORK_WINDOW_S)


def _attained(problem: Problem, groups: Sequence[Group]) -> float:
    return RequestSimulator(problem.requests, problem.times).score(groups).attainment


def _alpaserve(problem: Problem) -> Policy:
    """With buckets where there is one type of device, which is all that they are defined for."""
    return SeparatedSearch() if len(problem.num_devices) == 1 else FastHeuristic("alpaserve")


def _longest_pipeline(problem: Problem) -> int:
    """Four stages, as in AlpaServe's baseline, or the most that there can be."""
    is_pipeline = problem.times.num_stages == problem.times.num_devices
    stages = problem.times.num_stages[is_pipeline]
    return int(stages[stages <= RoundRobin().num_stages].max())


def _one_model_each(problem: Problem) -> Policy:
    """The configuration with which dedicated groups attain most."""
    candidates = [OneModelEach(config) for config in range(problem.num_configs)]
    return max(candidates, key=lambda policy: _attained(problem, policy.place(problem)))
