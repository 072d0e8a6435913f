"""What the runs of scheduling policies come to: figures of a run, medians over seeds, lines."""

import math
import statistics
from collections.abc import Sequence

from open_loop import Served
from scheduled_engine import Cost

Figures = dict[str, float]
Key = tuple[str, float, str]
Rows = dict[Key, list[Figures]]
GAINS = ("token_mean", "token_p95", "jct_mean", "jct_p95", "ttft_mean", "tokens_per_s")


def figures_of(served: Sequence[Served], cost: Cost) -> Figures:
    """Seconds, and what they cost; the first tenth of the requests only warms up."""
    counted = [request for request in served if int(request.request_id) >= len(served) // 10]
    by_name = {
        "token": [request.s_per_token for request in counted],
        "jct": [request.ended_s - request.arrived_s for request in counted],
        "ttft": [request.first_token_s - request.arrived_s for request in counted],
    }
    figures = {}
    for name, seconds in by_name.items():
        figures[f"{name}_mean"] = statistics.fmean(seconds)
        figures[f"{name}_p95"] = sorted(seconds)[math.ceil(0.95 * len(seconds)) - 1]
    return figures | {
        "tokens_per_s": sum(request.num_output_tokens for request in served) / cost.wall_s,
        "peak_blocks": cost.peak_blocks,
        "swapped_mb": cost.swapped_bytes / 1e6,
        "stall_share": cost.stall_s / cost.wall_s,
        "num_preemptions": cost.num_preemptions,
        "num_recomputed_tokens": cost.num_recomputed_tokens,
        "schedule_us": cost.schedule_s / cost.num_iterations * 1e6,
        "wall_s": cost.wall_s,
        "slowdown": cost.slowdown,
    }


def gain(row: Figures, base: Figures, figure: str) -> float:
    """How much better than ``base``: above 1."""
    ratio = row[figure] / base[figure]
    return ratio if figure == "tokens_per_s" else 1 / ratio


def gains(rows: Rows, key: Key, base: str, figure: str) -> list[float]:
    """The gain on another contender of the same workload and load, for each seed."""
    pairs = zip(rows[key], rows[*key[:2], base], strict=True)
    return [gain(row, other, figure) for row, other in pairs]


def summary(rows: Rows, key: Key) -> Figures:
    """Medians over seeds, and gains on FCFS with their least and most."""
    mine = rows[key]
    figures = {figure: statistics.median(row[figure] for row in mine) for figure in mine[0]}
    if (*key[:2], "fcfs") in rows:
        for figure in GAINS:
            values = gains(rows, key, "fcfs", figure)
            figures[f"{figure}_gain"] = statistics.median(values)
            figures[f"{figure}_gain_min"], figures[f"{figure}_gain_max"] = min(values), max(values)
    return figures


HEADER = (
    f"{'policy':11}{'ms/token':>9}{'p95':>8} | {'gain':>6}{'(least':>8} {'most)':6}{'p95':>7}"
    f" |{'JCT ms':>8}{'p95':>8}{'gain':>6}{'p95':>6} |{'TTFT ms':>8}{'p95':>8} |{'blocks':>7}"
    f"{'MB':>7}{'stall':>7}{'preempt':>8}{'recomp':>7} |{'tokens/s':>9}{'sched us':>9}{'slow':>6}"
)


def line(name: str, row: Figures) -> str:
    """A row of the table under ``HEADER``; gains are on FCFS."""
    ms = {figure: 1e3 * row[figure] for figure in row if figure.endswith(("_mean", "_p95"))}
    one = {figure: row.get(f"{figure}_gain", math.nan) for figure in GAINS}
    least, most = (row.get(f"token_mean_gain_{end}", math.nan) for end in ("min", "max"))
    return (
        f"{name:11}{ms['token_mean']:9.2f}{ms['token_p95']:8.2f} | {one['token_mean']:6.2f}"
        f"{least:8.2f} {most:<6.2f}{one['token_p95']:7.2f} |{ms['jct_mean']:8.1f}"
        f"{ms['jct_p95']:8.1f}{one['jct_mean']:6.2f}{one['jct_p95']:6.2f} |"
        f"{ms['ttft_mean']:8.1f}{ms['ttft_p95']:8.1f} |{row['peak_blocks']:7.0f}"
        f"{row['swapped_mb']:7.1f}{row['stall_share']:7.1%}{row['num_preemptions']:8.0f}"
        f"{row['num_recomputed_tokens']:7.0f} |{row['tokens_per_s']:9.0f}{row['schedule_us']:9.0f}"
        f"{row['slowdown']:6.2f}"
    )
