"""Measures a real fabric: what predictions may go by, and then what they are to predict."""

import os
import statistics
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import yaml
from fidelity_fabric import COMMAND, RunningFabric, client_cores, group_core, running_fabric
from fidelity_workload import Case, alike, backlog_of, requests_at

from fabric.core.profile import Profile
from fabric.core.request import LoadReport
from fabric.scheduler.policies import PolicyName
from placement.simulator.outcome import Outcome

PROFILE_TIMEOUT_S = 300.0
IDLE_GAP_S = 1.0
BACKLOG_SEED = 900
CV = 1.0


@dataclass(frozen=True)
class Depth:
    """How much is measured: requests of a run, of a backlog and alone; loads, policies, seeds.

    ``num_backlogs`` are served before the runs, one after the other.
    """

    num_requests: int
    num_backlog: int
    num_backlogs: int
    num_idle: int
    loads: tuple[float, ...]
    policies: tuple[PolicyName, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Run:
    """One run that is to be predicted, and a backlog that was served right before it.

    ``load`` is the rate by that of the case's backlogs. The group computed for ``busy_s`` of its
    processor's time in ``num_iterations`` iterations; others had ``others_share`` of its core.
    """

    policy: PolicyName
    load: float
    seed: int
    warm_up: Outcome
    outcome: Outcome
    num_iterations: int
    busy_s: float
    others_share: float


@dataclass(frozen=True)
class Measured:
    """All of one case.

    ``profiles`` are in the order of the models. After the ``first`` requests of all, ``idle`` are
    requests of one model each that were alone, and ``backlogs`` are of all models at once.
    """

    case: Case
    profiles: tuple[Profile, ...]
    report: LoadReport
    first: Outcome
    idle: tuple[Outcome, ...]
    backlogs: tuple[Outcome, ...]
    runs: tuple[Run, ...]

    @property
    def capacity_per_s(self) -> float:
        """Requests a second while there are always more."""
        return statistics.median(len(one.trace) / makespan_s(one) for one in self.backlogs)


def makespan_s(outcome: Outcome) -> float:
    """Seconds from the first arrival until the last request has ended."""
    return float((outcome.trace.arrivals_s + outcome.e2e_s).max() - outcome.trace.arrivals_s[0])


def measure_case(case: Case, folder: Path, depth: Depth) -> Measured:
    """Profile a case's models, then serve its requests by a real fabric."""
    files = {name: folder / f"{case.name}-{name}.json" for name in case.models}
    plain, config = (folder / f"{case.name}-{kind}.yaml" for kind in ("plain", "profiled"))
    plain.write_text(yaml.safe_dump(case.config({})))
    config.write_text(yaml.safe_dump(case.config(files)))
    for name, path in files.items():
        take_profile(plain, name, path)
    profiles = tuple(Profile.from_json(path.read_text()) for path in files.values())
    with running_fabric(config) as fabric, client_cores(fabric.core):
        report = fabric.load()
        numbers = range(len(case.models))
        first = fabric.measure(backlog_of(case, depth.num_idle, 1))
        idle = tuple(_measure_idle(fabric, case, number, depth) for number in numbers)
        backlogs = tuple(
            _measure_backlog(fabric, case, depth, seed) for seed in range(depth.num_backlogs)
        )
        found = Measured(case, profiles, report, first, idle, backlogs, ())
        return replace(found, runs=tuple(_measure_runs(fabric, found, depth)))


def take_profile(config: Path, model: str, out: Path) -> None:
    """Let `fabric profile` measure a model, on the core that the group will have."""
    core = group_core()
    command = [*COMMAND, "profile", model, str(config), "--out", str(out)]

    def settle() -> None:
        if core is not None:
            os.sched_setaffinity(0, {core})

    subprocess.run(
        command, check=True, capture_output=True, timeout=PROFILE_TIMEOUT_S, preexec_fn=settle
    )


def _measure_idle(fabric: RunningFabric, case: Case, model: int, depth: Depth) -> Outcome:
    """Requests of usual lengths that come one after the other."""
    usual = backlog_of(case, 1000, BACKLOG_SEED)
    prompt, output = int(usual.prompt_tokens.mean()), int(usual.output_tokens.mean())
    arrivals_s = [number * IDLE_GAP_S for number in range(depth.num_idle)]
    return fabric.measure(alike(case, model, arrivals_s, prompt, output))


def _measure_backlog(fabric: RunningFabric, case: Case, depth: Depth, seed: int) -> Outcome:
    return fabric.measure(backlog_of(case, depth.num_backlog, BACKLOG_SEED + seed))


def _measure_runs(fabric: RunningFabric, found: Measured, depth: Depth) -> Iterator[Run]:
    for seed in depth.seeds:
        for policy in depth.policies:
            fabric.set_policy(policy)
            for load in depth.loads:
                number = 10 + 100 * seed + round(10 * load)
                warm_up = _measure_backlog(fabric, found.case, depth, number)
                rate_per_s = load * found.capacity_per_s
                trace = requests_at(found.case, depth.num_requests, rate_per_s, CV, seed)
                num_before, core_before = fabric.load().num_steps, fabric.core_times()
                outcome = fabric.measure(trace)
                core_after = fabric.core_times()
                yield Run(
                    policy,
                    load,
                    seed,
                    warm_up,
                    outcome,
                    num_iterations=fabric.load().num_steps - num_before,
                    busy_s=core_after.group_s - core_before.group_s,
                    others_share=core_after.others_share(core_before),
                )
