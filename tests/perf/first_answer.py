"""How long a user waits for the planner: whole processes, from the command line to the last table.

Run: python tests/perf/first_answer.py [--repeats 7] [--input FILE] [--json OUT]. Commands
take turns, so that what else the machine does hits all of them.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from machine import describe_machine, verdict

ROOT = Path(__file__).resolve().parents[2]
MAX_PLAN_S = 2.0
MODULE = "from placement.cli.main import main; raise SystemExit(main())"


def commands(source: Path) -> dict[str, list[str]]:
    """What is run, by what it is called."""
    return {
        "help": ["--help"],
        "plan": ["plan", str(source)],
        "explain": ["explain", str(source)],
        "compare": ["compare", str(source)],
        "parallelize": ["parallelize", "llama-3-8b", "--mesh", "1x4"],
    }


def seconds(arguments: list[str]) -> float:
    """Wall time of one process."""
    begun = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", MODULE, *arguments], check=True, cwd=ROOT, capture_output=True
    )
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--input", type=Path, default=ROOT / "deploy" / "plan.yaml")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    machine = describe_machine("numpy")
    machine |= {name: str(value) for name, value in vars(options).items()}
    for name, value in machine.items():
        print(f"{name:20} {value}")
    taken: dict[str, list[float]] = {name: [] for name in commands(options.input)}
    for _ in range(options.repeats):
        for name, arguments in commands(options.input).items():
            taken[name].append(seconds(arguments))
    for name, values in taken.items():
        median_s = statistics.median(values)
        print(f"{name:12} {median_s:6.2f} s ({min(values):.2f} to {max(values):.2f})")
    plan_s = statistics.median(taken["plan"])
    print(f"BAR first_answer_s {plan_s:.2f} {MAX_PLAN_S} {verdict(plan_s < MAX_PLAN_S)}")
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "seconds": taken}, indent=1))


if __name__ == "__main__":
    main()
