"""How many iterations a second the simulator of whole fabrics takes on a core.

Run: python tests/perf/simulator.py [--json OUT] [--repeats 3].

Three models share a device group at a load of 0.7 of what the group serves flat out, with a real
service's lengths (Azure's conversations, a quarter as long); then one model flat out, with 16
and with 64 sequences in each iteration; then the three models on four groups each, between which
the router chooses. The bar is for the first two rows. Seconds are of the processor; the fastest
repeat counts, since all do the same work.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from lengths import draw_lengths
from machine import describe_machine, verdict

from fabric.core.plan import ModelShare, ParallelConfig
from fabric.core.profile import Profile
from fabric.scheduler.policies import PolicyConfig, PolicyName
from fabric.scheduler.settings import SchedulerConfig
from placement.cost.model import ModelCost
from placement.simulator.iteration_level import (
    Detail,
    RouterModel,
    SimulatedGroup,
    SimulatedModel,
    simulate_in_detail,
)
from placement.workload.trace import Trace

TARGET_PER_S = 20_000.0
LOAD = 0.7
NUM_REQUESTS = 2000
SEED = 0
SCALE = 4.0
BATCHES, CONTEXTS, PROMPTS = (1, 2, 4, 8, 16, 32, 64), (64, 256, 1024), (1, 64, 256, 1024)


@dataclass(frozen=True)
class Case:
    """Models that share groups; ``load`` is of what these serve flat out, None: just that."""

    name: str
    num_models: int
    max_num_seqs: int
    policy: PolicyName
    load: float | None
    num_groups: int = 1


@dataclass(frozen=True)
class Row:
    """What was simulated, and how fast."""

    case: Case
    num_iterations: int
    tokens_per_iteration: float
    cpu_s: float
    iterations_per_s: float
    wall_s: float


CASES = (
    Case("three models, load 0.7", 3, 8, "fcfs", LOAD),
    Case("three models, load 0.7", 3, 8, "mlfq", LOAD),
    Case("16 sequences, flat out", 1, 16, "fcfs", None),
    Case("64 sequences, flat out", 1, 64, "fcfs", None),
    Case("the same on four groups", 3, 8, "fcfs", LOAD, num_groups=4),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    machine = describe_machine("numpy", "llm-fabric")
    print(machine)
    print(f"{NUM_REQUESTS} requests, seed {SEED}, lengths azure_conv/{SCALE:g}")
    rows = [measure(case, options.repeats) for case in CASES]
    for row in rows:
        print(
            f"{row.case.name:24} {row.case.policy:5} {row.num_iterations:7d} iterations of "
            f"{row.tokens_per_iteration:5.1f} output tokens: {row.iterations_per_s:8.0f}/s "
            f"({1e6 / row.iterations_per_s:.1f} us; {row.cpu_s:.2f} s, wall {row.wall_s:.2f} s)"
        )
    slowest = min(row.iterations_per_s for row in rows[:2])
    if options.json:
        shown = {"machine": machine, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(shown, indent=2) + "\n")
    is_met = verdict(slowest >= TARGET_PER_S)
    print(f"BAR simulated_iterations_per_s {slowest:.0f} {TARGET_PER_S:.0f} {is_met}")


def measure(case: Case, repeats: int) -> Row:
    """Simulate a case a few times."""
    requests = flat_out = requests_of(case, float("inf"))
    if case.load is not None:
        capacity_per_s = NUM_REQUESTS / simulate(case, flat_out).span_s
        requests = requests_of(case, case.load * capacity_per_s)
    best = None
    for _ in range(repeats):
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        detail = simulate(case, requests)
        cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
        count = sum(group.num_iterations for group in detail.groups)
        num_output = float(detail.outcome.num_tokens.sum()) / count
        row = Row(case, count, num_output, cpu_s, count / cpu_s, wall_s)
        best = row if best is None or cpu_s < best.cpu_s else best
    assert best is not None, "at least one repeat"
    return best


def simulate(case: Case, requests: Trace) -> Detail:
    """Serve requests by the case's group."""
    models = tuple(
        SimulatedModel(ModelShare(name), cost(1.0 + number), 2048)
        for number, name in enumerate(requests.names)
    )
    config = SchedulerConfig(
        max_num_seqs=case.max_num_seqs,
        max_num_waiting=NUM_REQUESTS,
        policy=PolicyConfig(case.policy),
    )
    groups = [
        SimulatedGroup(f"g{number}", ParallelConfig(), models, 2**33, scheduler=config)
        for number in range(case.num_groups)
    ]
    router = RouterModel(max_inflight=NUM_REQUESTS)
    detail = simulate_in_detail(groups, requests, router, SEED)
    assert (detail.outcome.num_tokens == requests.output_tokens).all()
    return detail


def requests_of(case: Case, rate_per_s: float) -> Trace:
    """Poisson arrivals, or all at once; the models are equally popular."""
    rng = np.random.default_rng(SEED)
    lengths = np.array(draw_lengths("azure_conv", NUM_REQUESTS, SEED, SCALE), dtype=np.int32)
    arrivals_s = rng.exponential(1.0 / rate_per_s, NUM_REQUESTS).cumsum()
    return Trace(
        tuple(f"m{number}" for number in range(case.num_models)),
        float(arrivals_s[-1]),
        arrivals_s,
        rng.integers(case.num_models, size=NUM_REQUESTS, dtype=np.int32),
        np.clip(lengths[:, 0], 1, 1024),
        np.clip(lengths[:, 1], 1, 1024),
    )


def cost(scale: float) -> ModelCost:
    """A model whose iterations take 10 ms and more, times ``scale``."""
    prefill = tuple((n, scale * (0.01 + 0.0002 * n)) for n in PROMPTS)
    decode = tuple(
        (n, context, scale * (0.01 + 0.001 * n + 1e-7 * n * context))
        for n in BATCHES
        for context in CONTEXTS
    )
    return ModelCost(Profile(prefill, decode), (1.0,), (2**28,), (2**14,), overhead_s=0.001)


if __name__ == "__main__":
    main()
