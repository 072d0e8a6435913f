"""Measures a real fabric: what predictions may go by, and then what they are to predict."""

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from fidelity_fabric import COMMAND, RunningFabric, client_cores, group_core, running_fabric
from fidelity_workload import Case, alike, requests_at

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
    """How much is measured: requests of a run, of a backlog and alone; loads, policies, seeds."""

    num_requests: int
    num_backlog: int
    num_idle: int
    loads: tuple[float, ...]
    policies: tuple[PolicyName, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Run:
    """One run that is to be predicted, and a backlog that was served right before it.

    ``load`` is the rate by that of the case's backlogs. In ``num_iterations`` iterations, others
    had ``others_share`` of the group's core.
    """

    policy: PolicyName
    load: float
    seed: int
    warm_up: Outcome
    outcome: Outcome
    num_iterations: int
    others_share: float


@dataclass(frozen=True)
class Measured:
    """All of one case.

    ``profiles`` are in the order of the models, ``idle`` are requests of one model each that were
    alone, ``backlogs`` of all models at once. ``capacity_per_s`` is the rate of the backlogs.
    """

    case: Case
    profiles: tuple[Profile, ...]
    report: LoadReport
    idle: tuple[Outcome, ...]
    backlogs: tuple[Outcome, ...]
    runs: tuple[Run, ...]

    @property
    def capacity_per_s(self) -> float:
        """Requests a second while there are always more."""
        rates = sorted(rate_per_s(backlog) for backlog in self.backlogs)
        return rates[len(rates) // 2]


def rate_per_s(backlog: Outcome) -> float:
    """Requests by the time until the last of them has ended; all came at once."""
    return len(backlog.trace) / float(backlog.e2e_s.max())


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
        fabric.measure(requests_at(case, depth.num_idle, float("inf"), CV, 1))
        idle = tuple(_measure_idle(fabric, case, number, depth) for number in numbers)
        backlogs = tuple(_measure_backlog(fabric, case, depth, seed) for seed in range(3))
        found = Measured(case, profiles, report, idle, backlogs, ())
        runs = tuple(_measure_runs(fabric, found, depth))
    return Measured(case, profiles, report, idle, backlogs, runs)


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
    usual = requests_at(case, 1000, float("inf"), CV, BACKLOG_SEED)
    prompt, output = int(usual.prompt_tokens.mean()), int(usual.output_tokens.mean())
    arrivals_s = [number * IDLE_GAP_S for number in range(depth.num_idle)]
    return fabric.measure(alike(case, model, arrivals_s, prompt, output))


def _measure_backlog(fabric: RunningFabric, case: Case, depth: Depth, seed: int) -> Outcome:
    trace = requests_at(case, depth.num_backlog, float("inf"), CV, BACKLOG_SEED + seed)
    return fabric.measure(trace)


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
                share = fabric.core_times().others_share(core_before)
                num_iterations = fabric.load().num_steps - num_before
                yield Run(policy, load, seed, warm_up, outcome, num_iterations, share)
