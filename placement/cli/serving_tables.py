"""Tables of what a placement is, and of how its models are served."""

from collections.abc import Sequence

from placement.cli import units
from placement.cli.tables import Cell, Table, met
from placement.planning.report import (
    Fewest,
    GroupReport,
    Headroom,
    Interval,
    ModelReport,
    Percentiles,
    PlanReport,
    ServingReport,
)

METRICS = (("TTFT", "ttft_s"), ("TPOT", "tpot_s"), ("JCT", "e2e_s"))


def group_table(groups: Sequence[GroupReport]) -> Table:
    """Groups: their devices, what they host, and how full and busy they are."""
    num_devices = sum(group.num_devices for group in groups)
    rows = tuple(
        (
            group.name,
            f"{group.num_devices} x {group.device}",
            f"pp{group.pipeline} tp{group.tensor}",
            units.gibibytes(group.weight_bytes),
            units.gibibytes(group.kv_bytes),
            units.gibibytes(group.budget_bytes),
            units.percent(group.utilisation),
            ", ".join(group.models),
        )
        for group in groups
    )
    header = ("group", "devices", "cut", "weights GiB", "KV GiB", "of GiB", "busy", "models")
    return Table(f"Placement: {num_devices} devices in {len(groups)} groups", header, rows)


def model_table(report: ServingReport, target: float) -> Table:
    """Models: what is asked of them, where they are, how fast they answer."""
    rows = tuple(_model_row(model, target) for model in report.models)
    header = (
        "model", "req/s", "groups", "TTFT P50", "P99", "within", "TPOT P50", "P99", "within", "met"
    )  # fmt: skip
    title = f"Service, simulated by iterations: {report.num_requests:,} requests"
    return Table(f"{title} in {report.span_s:,.0f} s", header, rows)


def latency_table(report: ServingReport) -> Table:
    """Times of each model: to the first token, for each further one, to the last."""
    rows = tuple(
        (model.model, name, *_times(getattr(model, key)), _limit(model, key), _unloaded(model, key))
        for model in report.models
        for name, key in METRICS
    )
    header = ("model", "time", "mean", "P50", "P90", "P99", "within", "unloaded")
    return Table("Times of requests that were served", header, rows)


def attainment_table(report: ServingReport, target: float) -> Table:
    """Attainment of each model, and of all."""
    rows: list[tuple[str | Cell, ...]] = [
        (
            model.model,
            f"{model.num_requests:,}",
            " ".join(model.groups) or units.MISSING,
            _met(model, target),
        )
        for model in report.models
    ]
    rows.append(("all", f"{report.num_requests:,}", "", _met(report, target)))
    return Table("Attainment", ("model", "requests", "groups", "met"), tuple(rows))


def plan_notes(report: PlanReport) -> tuple[str, ...]:
    """What a plan promises, in sentences."""
    serving, search = report.serving, report.search
    sources = sorted({model.cost_source for model in serving.models})
    unseen = "say --thorough for workloads that the search has not seen"
    if report.held_out is not None:
        unseen = f"on workloads that the search has not seen {interval(report.held_out)}"
    notes = [
        f"Attainment: {units.percent(serving.attainment)}, target "
        f"{units.percent(report.target)}; {unseen}.",
        f"Search: {search.num_simulations:,} simulations in {units.seconds(search.seconds)}; "
        f"request by request {units.percent(search.attainment)}, unseen "
        f"{interval(search.held_out)}. Times are of: {', '.join(sources)}.",
    ]
    if report.fewest is not None:
        notes.append(_fewest(report.fewest))
    if report.headroom is not None:
        notes.append(_headroom(report.headroom))
    return (*notes, *(f"Warning: {warning}" for warning in report.warnings))


def interval(value: Interval) -> str:
    """A mean, and where it lies with 95 % confidence."""
    if value.num_seeds == 1:
        return f"{units.percent(value.mean)} (of one workload)"
    low, high = units.percent(value.low), units.percent(value.high)
    return f"{units.percent(value.mean)} ({low} to {high}, {value.num_seeds} seeds)"


def _headroom(headroom: Headroom) -> str:
    target = units.percent(headroom.target)
    if headroom.rate is None or headroom.objectives is None:
        return (
            f"Headroom: these devices attain {target} neither at a low rate nor with long limits."
        )
    return (
        f"Headroom for {target} on these devices: {headroom.rate:.2f} times the rate, or "
        f"objectives {headroom.objectives:.2f} times as long."
    )


def _fewest(fewest: Fewest) -> str:
    target = units.percent(fewest.target)
    if fewest.counts is None:
        return f"Fewest devices for {target}: no number of them is enough."
    devices = " and ".join(f"{count} x {name}" for name, count in fewest.counts)
    return (
        f"Fewest devices for {target}: {devices}, {fewest.price_per_hour:.2f} an hour; attains "
        f"{units.percent(fewest.held_out)} of unseen workloads."
    )


def _model_row(model: ModelReport, target: float) -> tuple[str | Cell, ...]:
    times = [
        text
        for key in ("ttft_s", "tpot_s")
        for text in (*_ends(getattr(model, key)), _limit(model, key))
    ]
    rate, groups = units.number(model.rate_per_s), " ".join(model.groups) or units.MISSING
    return (model.model, rate, groups, *times, _met(model, target))


def _ends(times: Percentiles) -> tuple[str, str]:
    return units.seconds(times.p50), units.seconds(times.p99)


def _times(times: Percentiles) -> tuple[str, ...]:
    return tuple(map(units.seconds, (times.mean, times.p50, times.p90, times.p99)))


def _limit(model: ModelReport, key: str) -> str:
    limit = getattr(model.objectives, key)
    return units.MISSING if limit is None else units.seconds(limit)


def _unloaded(model: ModelReport, key: str) -> str:
    value = {"ttft_s": model.unloaded_ttft_s, "tpot_s": model.unloaded_tpot_s}.get(key)
    return units.MISSING if value is None else units.seconds(value)


def _met(part: ModelReport | ServingReport, target: float) -> Cell:
    """An attainment; nothing if nobody asked."""
    if not part.num_requests:
        return Cell(units.MISSING)
    return met(part.attainment, target, units.percent(part.attainment))
