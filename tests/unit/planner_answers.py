"""Answers of the planner, made up: what tables and figures are tested with."""

import math

from fabric.core.request import Objectives
from placement.cli.reports import CapacityReport, CompareReport, Cut, FrontReport, StageReport
from placement.planning.report import (
    Binding,
    ExplainReport,
    Fewest,
    GroupReport,
    Headroom,
    Interval,
    ModelReport,
    Percentiles,
    PlanReport,
    PolicyRow,
    SearchReport,
    ServingReport,
    Sweep,
    SweepPoint,
    WhatIf,
)

GIB = 2**30
NOTHING = Percentiles(math.nan, math.nan, math.nan, math.nan)
GROUPS = (
    GroupReport("g0", "a100-80gb", 1, 2, ("chat", "mail"), 30 * GIB, 20 * GIB, 72 * GIB, 0.62),
    GroupReport("g1", "a100-80gb", 4, 1, ("code",), 35 * GIB, 9 * GIB, 72 * GIB, 0.08),
)


def times(p50: float) -> Percentiles:
    return Percentiles(1.1 * p50, p50, 1.7 * p50, 3.2 * p50)


def model(name: str, attainment: float, groups: tuple[str, ...]) -> ModelReport:
    return ModelReport(
        model=name,
        rate_per_s=2.5,
        groups=groups,
        objectives=Objectives(1.0, 0.05),
        unloaded_ttft_s=0.08,
        unloaded_tpot_s=0.011,
        cost_source="roofline of a100-80gb",
        num_requests=750,
        attainment=attainment,
        ttft_s=times(0.12) if groups else NOTHING,
        tpot_s=times(0.015) if groups else NOTHING,
        e2e_s=times(2.9) if groups else NOTHING,
    )


SERVING = ServingReport(
    groups=GROUPS,
    models=(
        model("chat", 0.998, ("g0",)),
        model("mail", 0.981, ("g0",)),
        model("code", 0.913, ("g1",)),
        model("other", 0.0, ()),
    ),
    num_requests=3000,
    span_s=300.0,
    attainment=0.964,
    num_iterations=120_000,
    seconds=1.5,
)
PLAN = PlanReport(
    search=SearchReport(0.97, Interval(0.95, 0.93, 0.97, 5), 1234, 0.8),
    serving=SERVING,
    held_out=Interval(0.955, 0.94, 0.97, 5),
    target=0.99,
    fewest=Fewest(0.99, (("a100-80gb", 6), ("l4", 2)), 22.18, 0.992),
    headroom=Headroom(0.99, 1.25, 0.8),
    plan_yaml="models: []\n",
    warnings=("other: is in no group",),
)
CAPACITY = CapacityReport(
    0.99,
    tuple(
        Sweep(
            quantity,
            tuple(
                SweepPoint(value, (("ours", 1 - 0.02 * value), ("alpaserve", 1 - 0.05 * value)))
                for value in (1.0, 2.0, 4.0, 8.0)
            ),
        )
        for quantity in ("devices", "rate", "cv", "slo")
    ),
)
COMPARE = CompareReport(
    0.99,
    (
        PolicyRow("ours", 4, 9, 0.995, Interval(0.99, 0.985, 0.995, 5), 1.2),
        PolicyRow("round-robin", 2, 6, 0.71, Interval(0.69, 0.66, 0.72, 5), 0.01),
    ),
)
EXPLAIN = ExplainReport(
    (
        Binding("chat", "none", 0.0, "every request is in time"),
        Binding("code", "burst", 0.06, "come in bursts that the devices can't take"),
        Binding("code", "memory", 0.02, "would be in time if every group had room"),
        Binding("mail", "convoy", 0.019, "wait behind requests of other models"),
    ),
    (WhatIf("devices = 16", 0.999, 0.955), WhatIf("rate x 2", 0.81, 0.955)),
)


def _stage(first: int, end: int, seconds: float) -> StageReport:
    strategies = (("2 layers: qkv weights", "by output"), ("2 layers: qkv (decode)", "output"))
    halves = (seconds / 2, seconds / 2)
    return StageReport(first, end, 1, 4, seconds, halves, 9 * GIB, strategies)


FRONT = FrontReport(
    model="llama-3-8b",
    device="a100-80gb",
    num_devices=8,
    budget_bytes=72 * GIB,
    phases=(("prefill", 1.0), ("decode", 128.0)),
    cuts=(
        Cut(0.80, 0.80, 4 * GIB, (0.4, 0.4), (_stage(0, 32, 0.8),)),
        Cut(1.00, 0.52, 6 * GIB, (0.5, 0.5), (_stage(0, 16, 0.48), _stage(16, 32, 0.52))),
    ),
    choices=(("fastest", 0), ("highest_rate", 1), ("smallest", 0), ("best_filled", 1)),
    solve_s=0.4,
)
EMPTY_FRONT = FrontReport("llama-3-8b", "l4", 1, GIB, (("prefill", 1.0),), (), (), 0.1)
