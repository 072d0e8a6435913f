"""How well the iteration-level simulator predicts a real fabric: the same requests in both.

Run: python tests/perf/fidelity.py [--quick] [--seeds N] [--json OUT] [--keep FILE | --from FILE]

For one model, and for three that share a device group: `fabric profile` measures the models, then
`fabric serve` (Ray, router, device group) answers a gRPC client in an open loop, scheduled by FCFS
and by MLFQ, at loads of 0.4 and 0.8 of the rate at which it served backlogs of the same kind. Gaps
are Gamma distributed with a cv of 1; lengths are those of the Azure conversation trace, by 16. The
simulator gets the profiles and the three numbers that fidelity_predict.py calibrates, none of them
from a run that it predicts.
"""

import argparse
import json
import pickle
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from fidelity_measure import Depth, Measured, measure_case
from fidelity_predict import Predictor
from fidelity_report import (
    Conditions,
    Row,
    bars,
    print_conditions,
    print_table,
    rows_of,
)
from fidelity_workload import cases
from machine import describe_machine

from fabric.scheduler.policies import PolicyName

LOADS = (0.4, 0.8)
POLICIES: tuple[PolicyName, ...] = ("fcfs", "mlfq")


def depth_of(options: argparse.Namespace) -> Depth:
    """How much is measured."""
    seeds = tuple(range(1, options.seeds + 1))
    if options.quick:
        return Depth(60, 32, 3, 4, LOADS[-1:], POLICIES, seeds)
    return Depth(options.requests, 48, 5, 8, LOADS, POLICIES, seeds)


def measure(depth: Depth) -> list[Measured]:
    """Measure all cases, one after the other."""
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for case in cases(Path(folder)):
            print(f"{case.name}: measuring {', '.join(case.models)}", flush=True)
            found.append(measure_case(case, Path(folder), depth))
        return found


def predict(found: Sequence[Measured]) -> dict[str, object]:
    """Predict what was measured, print both, and return them."""
    rows: list[Row] = []
    conditions: list[Conditions] = []
    calibrations = {}
    for measured in found:
        predictor = Predictor(measured)
        calibrations[measured.case.name] = asdict(predictor.calibration)
        print_conditions(measured, predictor)
        for run in measured.runs:
            more, how = rows_of(measured, predictor, run)
            rows += more
            conditions.append(how)
    print_table(rows, conditions)
    for line in bars(rows):
        print(line)
    return {
        "calibrations": calibrations,
        "capacity_per_s": {one.case.name: one.capacity_per_s for one in found},
        "rows": [{**asdict(row), "error": row.error} for row in rows],
        "runs": [asdict(one) for one in conditions],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few requests at the higher load")
    parser.add_argument("--seeds", type=int, default=1, help="of three or more, medians count")
    parser.add_argument("--requests", type=int, default=300, help="a run")
    parser.add_argument("--keep", type=Path, help="write what was measured")
    parser.add_argument("--from", dest="kept", type=Path, help="predict what --keep wrote")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    machine = describe_machine("torch", "ray", "grpcio")
    print(machine)
    if options.kept is None:
        found = measure(depth_of(options))
    else:
        found = pickle.loads(options.kept.read_bytes())
    if options.keep is not None:
        options.keep.write_bytes(pickle.dumps(found))
    result = predict(found)
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, **result}, indent=2) + "\n")


if __name__ == "__main__":
    main()
