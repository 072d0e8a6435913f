"""Replay AlpaServe's published placements: attainment against theirs, and requests a second.

Run: python tests/perf/alpaserve.py [--rows FILE] [--profile FILE] [--json OUT].

Simulated rows are compared with an independent replay of the same service times, or with what was
published where there is none; rows of the real cluster with what was measured there. Rows whose
groups cut operators or pipeline them are in-sample: their stage times were recovered from these
rows. Those that only replicate models depend on six single-GPU latencies alone. Rows that compare
with the real cluster have a latency of their own for operators cut over four GPUs (ALIGN_OP4_S);
with the profile's, the worst simulated row would be 0.0140 off instead of 0.0005.
"""

import argparse
import json
import os
import time
from pathlib import Path
from statistics import median

from machine import describe_machine, verdict

from placement.alpaserve.cases import ALIGN_OP4_S, Case
from placement.alpaserve.profile import V100Profile, load_profile
from placement.alpaserve.rows import Row, read_rows, row_simulator

DATA = Path(__file__).resolve().parents[3] / "shared/data"
FASTEST_CASE = Case("mixed", 60, 64.0, 4.0, 5.0)
NUM_WORST = 5
NUM_REPEATS = 7
BURST_S = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    folder = Path(os.environ.get("FABRIC_TEST_DATA", DATA)) / "alpaserve"
    parser.add_argument("--rows", type=Path, default=folder / "golden_rows.jsonl")
    parser.add_argument("--profile", type=Path, default=folder / "fitted_v100.json")
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    machine = describe_machine("numpy")
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    profile, rows = load_profile(arguments.profile), read_rows(arguments.rows)
    print(f"{len(rows)} rows of {arguments.rows}; every model's seed is its number")
    replays = [replay(row, profile) for row in rows]
    print_rows(replays)
    speeds = [speed(row, profile) for row in rows if row.case == FASTEST_CASE]
    for one in speeds:
        print(f"{one['policy']:16}{one['devices']:4} devices {one['millions_per_s']:7.1f} M/s")
    bars = row_bars(replays) + speed_bars(speeds)
    for name, value, target, is_met in bars:
        print(f"BAR {name} {value:.5g} {target:g} {verdict(is_met)}")
    if arguments.json is not None:
        content = {"machine": machine, "rows": replays, "speeds": speeds, "bars": bars}
        arguments.json.write_text(json.dumps(content, indent=1))


def replay(row: Row, profile: V100Profile) -> dict[str, object]:
    """One row's attainment, ours and theirs."""
    simulator = row_simulator(row, profile)
    attainment = simulator.score(row.groups).attainment
    return {
        "set": row.case.models,
        "policy": row.policy,
        "experiment": row.experiment,
        "models": row.case.num_models,
        "devices": row.num_devices,
        "rate_per_s": row.case.rate_per_s,
        "cv": row.case.cv,
        "slo_scale": row.case.slo_scale,
        "kind": kind_of(row),
        "has_all_requests": len(simulator.run(row.groups).finish_s) == row.num_requests,
        "attainment": attainment,
        "published": row.published,
        "replayed": row.replayed,
        "error": abs(attainment - row.expected),
    }


def kind_of(row: Row) -> str:
    """Which bar a row belongs to."""
    if row.is_real:
        return "real"
    return "replicated" if row.is_replicated else "parallel"


def print_rows(replays: list[dict]) -> None:
    """Errors of each kind of row, and the worst rows."""
    for kind in ("replicated", "parallel", "real"):
        errors = [one["error"] for one in replays if one["kind"] == kind]
        if errors:
            print(
                f"{kind:12}{len(errors):4} rows, error mean {sum(errors) / len(errors):.5f} "
                f"max {max(errors):.5f}"
            )
    simulated = [one for one in replays if one["kind"] != "real"]
    published = [abs(one["attainment"] - one["published"]) for one in simulated]
    if published:
        print(f"simulated rows against the published figure: max {max(published):.5f}")
    missing = sum(not one["has_all_requests"] for one in replays)
    print(f"rows with another number of requests than published: {missing}")
    print(f"operators cut over 4 take bert-2.6b {ALIGN_OP4_S} s in align rows (see cases.py)")
    print("worst rows:")
    for one in sorted(replays, key=lambda one: -one["error"])[:NUM_WORST]:
        print(
            f"  {one['set']:20}{one['policy']:15}{one['devices']:4} devices "
            f"{one['rate_per_s']:6.4g}/s cv {one['cv']:g} slo {one['slo_scale']:g}: "
            f"{one['attainment']:.4f} for {one['replayed'] or one['published']}"
        )


def speed(row: Row, profile: V100Profile) -> dict[str, object]:
    """Requests a second on one core, the arrays made: the median of bursts of many scores."""
    simulator = row_simulator(row, profile)
    results = []
    for _ in range(NUM_REPEATS):
        num_scores, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < BURST_S:
            simulator.score(row.groups)
            num_scores += 1
        results.append(num_scores * row.num_requests / elapsed / 1e6)
    return {
        "policy": row.policy,
        "experiment": row.experiment,
        "devices": row.num_devices,
        "millions_per_s": median(results),
        "all_millions_per_s": results,
    }


def row_bars(replays: list[dict]) -> list[tuple[str, float, float, bool]]:
    """The largest errors against their limits."""
    kinds = (
        ("replicated_max_error", ("replicated",), 0.001),
        ("simulated_max_error", ("replicated", "parallel"), 0.010),
        ("real_cluster_max_error", ("real",), 0.016),
    )
    bars = []
    for name, included, limit in kinds:
        errors = [one["error"] for one in replays if one["kind"] in included]
        if errors:
            bars.append((name, max(errors), limit, max(errors) <= limit))
    return bars


def speed_bars(speeds: list[dict]) -> list[tuple[str, float, float, bool]]:
    """The slowest placement's speed; none if the rows have no placement of the case."""
    if not speeds:
        return []
    slowest = min(one["millions_per_s"] for one in speeds)
    return [("requests_per_s_one_core", slowest * 1e6, 5e6, slowest >= 5)]


if __name__ == "__main__":
    main()
