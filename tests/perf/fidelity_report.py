"""Holds predictions against what was measured: a table, and bars."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from fidelity_measure import Measured, Run
from fidelity_predict import Predictor
from machine import verdict

from fabric.cli.table import format_table
from fabric.core.request import Objectives

TIMES = (("TTFT", "ttft_s"), ("TPOT", "tpot_s"), ("JCT", "e2e_s"))
SLO_SCALE = 5.0
MAX_ERROR = 0.15
MAX_POINTS = 3.0


@dataclass(frozen=True)
class Row:
    """One figure of a run; errors are relative, of an attainment in points."""

    case: str
    policy: str
    load: float
    seed: int
    figure: str
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        """How much too high the prediction is."""
        if self.figure == "attainment":
            return 100.0 * (self.predicted - self.measured)
        return self.predicted / self.measured - 1.0

    @property
    def cells(self) -> tuple[str, ...]:
        """A line of the table: milliseconds and per cent, or per cent and points."""
        is_share = self.figure == "attainment"
        scale, unit = (100.0, "points") if is_share else (1e3, "%")
        error = self.error if is_share else 100.0 * self.error
        return (
            *(self.case, self.policy, f"{self.load:g}", str(self.seed), self.figure),
            *(f"{scale * value:.1f}" for value in (self.measured, self.predicted)),
            f"{error:+.1f} {unit}",
        )


@dataclass(frozen=True)
class Conditions:
    """How one run went, beside its requests' times.

    Where the group was busy for longer than predicted, something slowed the machine down.
    """

    case: str
    policy: str
    load: float
    seed: int
    num_requests: int
    num_iterations: int
    predicted_iterations: int
    busy_s: float
    predicted_busy_s: float
    others_share: float


def rows_of(measured: Measured, predictor: Predictor, run: Run) -> tuple[list[Row], Conditions]:
    """Predict a run, and compare."""
    predicted = predictor.predict(run)
    place = (measured.case.name, run.policy, run.load, run.seed)
    rows = []
    for title, name in TIMES:
        pair = [getattr(outcome, name) for outcome in (run.outcome, predicted.outcome)]
        rows.append(Row(*place, f"{title} mean", *(float(np.nanmean(times)) for times in pair)))
        p90 = (float(np.nanpercentile(times, 90.0)) for times in pair)
        rows.append(Row(*place, f"{title} P90", *p90))
    objectives = objectives_of(measured)
    shares = (one.attainment(objectives) for one in (run.outcome, predicted.outcome))
    rows.append(Row(*place, "attainment", *shares))
    return rows, Conditions(
        *place,
        num_requests=len(run.outcome.trace),
        num_iterations=run.num_iterations,
        predicted_iterations=predicted.num_iterations,
        busy_s=run.busy_s,
        predicted_busy_s=predicted.busy_s,
        others_share=run.others_share,
    )


def objectives_of(measured: Measured) -> tuple[Objectives, ...]:
    """So many times what lone requests took, by model."""
    return tuple(
        Objectives(
            ttft_s=SLO_SCALE * float(np.median(alone.ttft_s)),
            tpot_s=SLO_SCALE * float(np.median(alone.tpot_s)),
        )
        for alone in measured.idle
    )


def print_conditions(measured: Measured, predictor: Predictor) -> None:
    """What the prediction of a case goes by."""
    given, case = predictor.calibration, measured.case
    for name, alone, wanted in zip(
        case.models, measured.idle, objectives_of(measured), strict=True
    ):
        assert wanted.ttft_s is not None
        assert wanted.tpot_s is not None
        trace = alone.trace
        print(
            f"{case.name}: {name} alone, {trace.prompt_tokens[0]} + {trace.output_tokens[0]} "
            f"tokens: TTFT {1e3 * np.median(alone.ttft_s):.1f} ms, TPOT "
            f"{1e3 * np.median(alone.tpot_s):.1f} ms; objectives {1e3 * wanted.ttft_s:.0f} and "
            f"{1e3 * wanted.tpot_s:.0f} ms"
        )
    print(
        f"{case.name}: capacity {measured.capacity_per_s:.2f} requests/s; calibrated: "
        f"{1e3 * given.overhead_s:.2f} ms an iteration, {1e3 * given.request_s:.1f} ms a request, "
        f"profiles x {given.scale:.3f}"
    )


def print_table(rows: Sequence[Row], conditions: Sequence[Conditions]) -> None:
    """Every figure of every run, and how the runs went."""
    header = ("CASE", "POLICY", "LOAD", "SEED", "FIGURE", "MEASURED", "PREDICTED", "ERROR")
    print(format_table(header, [row.cells for row in rows]))
    how = ("REQUESTS", "ITERATIONS", "PREDICTED", "BUSY S", "PREDICTED", "OTHERS")
    lines = []
    for one in conditions:
        *known, busy_s, predicted_s, share = asdict(one).values()
        cells = (*map(str, known), f"{busy_s:.1f}", f"{predicted_s:.1f}", f"{100 * share:.1f} %")
        lines.append(cells)
    print("\n" + format_table((*header[:4], *how), lines))


def bars(rows: Sequence[Row]) -> Iterator[str]:
    """The worst error of each case and policy, over loads and figures; medians over seeds."""
    for case, policy in dict.fromkeys((row.case, row.policy) for row in rows):
        errors: dict[tuple[float, str], list[float]] = {}
        for row in rows:
            if (row.case, row.policy) == (case, policy):
                errors.setdefault((row.load, row.figure), []).append(row.error)
        middle = {key: statistics.median(values) for key, values in errors.items()}
        worst = max(abs(error) for (_, name), error in middle.items() if name != "attainment")
        points = max(abs(error) for (_, name), error in middle.items() if name == "attainment")
        name = f"fidelity_{case}_{policy}"
        is_close, is_exact = worst <= MAX_ERROR, points <= MAX_POINTS
        yield f"BAR {name}_worst_error {worst:.3f} {MAX_ERROR} {verdict(is_close)}"
        yield f"BAR {name}_attainment_points {points:.2f} {MAX_POINTS} {verdict(is_exact)}"
