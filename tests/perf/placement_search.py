"""Attainment of our placements beside other policies', on AlpaServe's synthetic cases.

Every policy trains on the same requests, of other seeds than those it is tested on: the published
test workload, and fresh workloads. Policies take turns. A pipeline of two stages and operators cut
over two devices are left out: their service times are hardly determined by what was published.

    python tests/perf/placement_search.py --data ../shared/data --json search.json
"""

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from time import perf_counter

from machine import describe_machine, verdict

from fabric.core.plan import ParallelConfig
from placement.alpaserve.cases import Case, case_requests, case_times
from placement.alpaserve.profile import V100Profile, load_profile
from placement.alpaserve.workload import num_edge_requests
from placement.search.held_out import HeldOut, summary
from placement.search.policies import (
    EqualPipelines,
    FastHeuristic,
    OneModelEach,
    OurSearch,
    Policy,
    RoundRobin,
    SelectiveReplication,
)
from placement.search.policies_buckets import SeparatedSearch
from placement.search.problem import Groups, Problem
from placement.search.replanning import replan
from placement.search.search import SearchSettings
from placement.simulator.request_level import RequestSimulator
from placement.simulator.service import KindRequests, ServiceTimes

CONFIGS = tuple(ParallelConfig(*one) for one in ((1, 1), (4, 1), (8, 1), (1, 4)))
TRAIN_SEED, HELD_OUT_SEED, SEED_STEP = 1_000_000, 50_000, 1_000
REPLAN_S = (20.0, 60.0)
MARGIN = 0.02
MAX_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Setting:
    """A case, its devices, and what AlpaServe's policies were published to attain on it."""

    case: Case
    num_devices: int
    published: dict[str, float]

    @property
    def name(self) -> str:
        return f"{self.case.models} {self.case.num_models}x{self.num_devices}"


SETTINGS = (
    Setting(
        Case("mixed", 60, 64.0, 4.0, 5.0),
        32,
        {
            "sr-greedy": 0.690,
            "mp-round-robin": 0.875,
            "mp-greedy-4": 0.898,
            "mp-search": 0.934,
            "mp-search-sep": 0.960,
        },
    ),
    Setting(
        Case("bert", 42, 64.0, 4.0, 5.0),
        24,
        {
            "sr-greedy": 0.607,
            "mp-round-robin": 0.676,
            "mp-greedy-4": 0.830,
            "mp-search": 0.852,
            "mp-search-sep": 0.864,
        },
    ),
)


@dataclass(frozen=True, slots=True)
class Tests:
    """Simulators of the published workload and of fresh ones, ten seconds at either end cut."""

    published: RequestSimulator
    fresh: tuple[RequestSimulator, ...]

    @classmethod
    def of(cls, case: Case, profile: V100Profile, num_fresh: int) -> "Tests":
        times = case_times(case, profile, CONFIGS)
        seeds = [0, *(HELD_OUT_SEED + SEED_STEP * number for number in range(num_fresh))]
        each = [simulator(case_requests(case, profile, seed), times) for seed in seeds]
        return cls(each[0], tuple(each[1:]))

    def attainment(self, groups: Groups) -> tuple[float, HeldOut]:
        fresh = [one.score(groups).attainment for one in self.fresh]
        return self.published.score(groups).attainment, summary(fresh)


def simulator(requests: KindRequests, times: ServiceTimes) -> RequestSimulator:
    return RequestSimulator(requests, times, num_edge_requests(requests.arrivals_s))


def policies(seed: int) -> list[Policy]:
    return [
        SelectiveReplication(),
        RoundRobin(),
        EqualPipelines(4),
        OneModelEach(0),
        FastHeuristic(),
        SeparatedSearch(),
        OurSearch(SearchSettings(seed=seed)),
    ]


def run_policy(policy: Policy, problem: Problem, tests: Tests) -> dict[str, object]:
    begin = perf_counter()
    groups = policy.place(problem)
    seconds = perf_counter() - begin
    problem.check(groups)
    training = RequestSimulator(problem.requests, problem.times).score(groups).attainment
    published, held_out = tests.attainment(groups)
    return {
        "policy": policy.name,
        "seconds": seconds,
        "training": training,
        "test": published,
        "held_out": held_out.mean,
        "half_width": held_out.half_width,
        "configs": [str(CONFIGS[group.config]) for group in groups],
        "groups": [list(group.models) for group in groups],
    }


def run_setting(setting: Setting, profile: V100Profile, args: argparse.Namespace) -> list[dict]:
    times = case_times(setting.case, profile, CONFIGS)
    tests = Tests.of(setting.case, profile, args.fresh)
    rows = []
    for repeat in range(args.repeats):
        training = replace(setting.case, duration_s=args.training_s)
        requests = case_requests(training, profile, TRAIN_SEED + SEED_STEP * repeat)
        problem = Problem.of_one_type(requests, times, setting.num_devices)
        for policy in policies(repeat):
            row = {"case": setting.name, "repeat": repeat, **run_policy(policy, problem, tests)}
            print_row(row, setting.published.get(policy.name))
            rows.append(row)
    return rows + replanned(setting, profile, times)


def replanned(setting: Setting, profile: V100Profile, times: ServiceTimes) -> list[dict]:
    """Clockwork++ on the test workload itself, which it knows in advance."""
    requests = case_requests(setting.case, profile, 0)
    problem = Problem.of_one_type(requests, times, setting.num_devices)
    rows = []
    for window_s in REPLAN_S:
        found = replan(problem, requests, window_s)
        rows.append({"case": setting.name, "policy": found.name, "test": found.attainment})
        print(f"{setting.name:13} {found.name:15} test {found.attainment:.4f} (knows the future)")
    return rows


def print_row(row: dict, published: float | None) -> None:
    told = "" if published is None else f"  published {published:.3f}"
    print(
        f"{row['case']:13} {row['policy']:15} {row['seconds']:7.2f} s  "
        f"training {row['training']:.4f}  test {row['test']:.4f}  "
        f"held-out {row['held_out']:.4f} ± {row['half_width']:.4f}{told}",
        flush=True,
    )


def averages(rows: list[dict], setting: Setting, policy: str, column: str) -> float:
    mine = [row for row in rows if row["case"] == setting.name and row["policy"] == policy]
    return mean(row[column] for row in mine)


def print_bars(rows: list[dict]) -> None:
    for setting in SETTINGS:
        name = setting.name.replace(" ", "_")
        test = averages(rows, setting, "fabric", "test")
        best = max(setting.published.values())
        print(f"BAR {name}_test {test:.4f} {best:.4f} {verdict(test >= best)}")
        ours = averages(rows, setting, "fabric", "held_out")
        gain = ours - averages(rows, setting, "mp-search", "held_out")
        print(f"BAR {name}_held_out_gain {gain:.4f} {MARGIN:.4f} {verdict(gain >= MARGIN)}")
    seconds = averages(rows, SETTINGS[0], "fabric", "seconds")
    print(f"BAR search_s {seconds:.2f} {MAX_SECONDS:.2f} {verdict(seconds <= MAX_SECONDS)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--fresh", type=int, default=10)
    parser.add_argument("--training-s", type=float, default=3_760.0)
    args = parser.parse_args()
    machine = describe_machine("numpy")
    print(json.dumps(machine))
    print(f"training {args.training_s:g} s, seeds {TRAIN_SEED} + {SEED_STEP} x repeat; test seed 0")
    profile = load_profile(args.data / "alpaserve/fitted_v100.json")
    rows = [row for setting in SETTINGS for row in run_setting(setting, profile, args)]
    print_bars(rows)
    if args.json:
        args.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
