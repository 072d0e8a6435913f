"""The Azure Functions traces that AlpaServe replays, as arrivals of requests."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fabric.core.errors import ConfigError
from fabric.core.traces import Row, count_of, number_of, read_csv
from placement.workload.arrivals import check_number
from placement.workload.generate import ModelWorkload, generator, with_lengths
from placement.workload.refit import Refit, process_of
from placement.workload.sources import Mapping, deal
from placement.workload.trace import FloatArray, Trace

MINUTE_S = 60.0
MINUTES_A_DAY = 1440
CountArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class MinuteCounts:
    """How often each source was asked in each minute: ``counts`` ``[sources, minutes]``."""

    names: tuple[str, ...]
    counts: CountArray

    @property
    def duration_s(self) -> float:
        """Of all minutes."""
        return float(self.counts.shape[1] * MINUTE_S)


def read_minute_counts(
    path: Path, first_minute: int = 0, num_minutes: int = MINUTES_A_DAY
) -> MinuteCounts:
    """Read a day of the Azure Functions trace of 2019; functions never asked then are left out.

    Raises:
        ConfigError: The minutes are none of a day, the file can't be read, a line is wrong, or
            nothing is asked then.

    Source: Serverless in the Wild (Shahrad et al., USENIX ATC 2020), the trace.
    """
    if not 0 <= first_minute < first_minute + num_minutes <= MINUTES_A_DAY:
        raise ConfigError(
            f"minutes {first_minute} to {first_minute + num_minutes} are none of a day's "
            f"{MINUTES_A_DAY}"
        )
    columns = [str(1 + first_minute + minute) for minute in range(num_minutes)]

    def parse(row: Row) -> tuple[str, list[int]]:
        return str(row["HashFunction"]), [count_of(row, column) for column in columns]

    needs = ("HashFunction", f"{columns[0]} to {columns[-1]}")
    found = [(name, counts) for name, counts in read_csv(path, parse, needs) if any(counts)]
    if not found:
        raise ConfigError(f"{path}: no function is asked in these minutes")
    return MinuteCounts(
        tuple(name for name, _ in found), np.array([counts for _, counts in found], np.int64)
    )


def deal_counts(counts: MinuteCounts, names: Sequence[str], mapping: Mapping) -> MinuteCounts:
    """The counts of our models: each the sum of its functions', dealt as :func:`deal` says."""
    models = deal(counts.names, names, mapping)
    sums = np.zeros((len(names), counts.counts.shape[1]), np.int64)
    np.add.at(sums, models, counts.counts)
    return MinuteCounts(tuple(names), sums)


def replay_counts(
    counts: MinuteCounts, workloads: Sequence[ModelWorkload], refit: Refit | None, seed: int
) -> Trace:
    """Requests that were asked so often in each minute, or in each of ``refit``'s windows.

    With ``refit``, a window of ``h`` requests has a Gamma process of ``rate_scale`` times its
    rate, and ``cv_scale`` is its coefficient of variation. Without, requests are anywhere in
    their minute.

    Args:
        counts: Of our models.
        workloads: Their lengths; when they are asked is not looked at.
        refit: How windows are drawn, of whole minutes.
        seed: Equal seeds give equal traces.

    Raises:
        ConfigError: The windows are not of whole minutes.

    Source: AlpaServe (Li et al., OSDI 2023), section 6.2.
    """
    window_s = MINUTE_S if refit is None else refit.window_s
    num_minutes = round(window_s / MINUTE_S)
    if num_minutes < 1 or num_minutes * MINUTE_S != window_s:
        raise ConfigError(f"window_s is {window_s}; the trace has counts of whole minutes")
    starts = np.arange(0, counts.counts.shape[1], num_minutes)
    sums = np.add.reduceat(counts.counts, starts, axis=1)
    arrivals = []
    for model, row in enumerate(sums):
        rng = generator(seed, model, "counts")
        parts = [np.empty(0)]
        for window in np.flatnonzero(row):
            start_s = float(starts[window]) * MINUTE_S
            length_s = min(window_s, counts.duration_s - start_s)
            parts.append(start_s + _window(int(row[window]), length_s, refit, rng))
        arrivals.append(np.concatenate(parts))
    return with_lengths(workloads, counts.duration_s, arrivals, seed)


def _window(
    count: int, window_s: float, refit: Refit | None, rng: np.random.Generator
) -> FloatArray:
    if refit is None:
        return np.sort(rng.uniform(0.0, window_s, count))
    return process_of(count / window_s, 1.0, refit).draw(rng, window_s)


def read_invocations(path: Path, start_s: float = 0.0, duration_s: float | None = None) -> Trace:
    """Read the Azure Functions trace of 2021: when each function was asked, in time's order.

    An invocation began its duration before its end. Sources are functions, numbered as they come
    in the file; requests have no lengths yet.

    Args:
        path: The file.
        start_s: Seconds into the trace from which invocations count.
        duration_s: For how long; None: to the last.

    Raises:
        ConfigError: The file can't be read, a line is wrong, or no function is asked then.

    Source: Faster and Cheaper Serverless Computing on Harvested Resources (Zhang et al., SOSP
    2021), the trace; AlpaServe's public code for the arrivals.
    """
    check_number("start_s", start_s)
    names: dict[str, int] = {}
    times: list[float] = []
    sources: list[int] = []
    needs = ("app", "func", "end_timestamp", "duration")
    for name, at_s in read_csv(path, _invocation, needs):
        times.append(at_s)
        sources.append(names.setdefault(name, len(names)))
    times_s = np.array(times) - start_s
    end_s = float(times_s.max(initial=0.0)) if duration_s is None else duration_s
    here = np.flatnonzero((times_s >= 0.0) & (times_s <= end_s))
    if not len(here):
        raise ConfigError(f"{path}: no function is asked from {start_s} s on")
    order = here[np.argsort(times_s[here], kind="stable")]
    none = np.zeros(len(order), np.int32)
    trace = Trace(
        tuple(names), end_s, times_s[order], np.array(sources, np.int32)[order], none, none
    )
    return _without_idle(trace)


def _invocation(row: Row) -> tuple[str, float]:
    began_s = number_of(row, "end_timestamp") - number_of(row, "duration")
    return f"{row['app']}/{row['func']}", began_s


def _without_idle(trace: Trace) -> Trace:
    """Functions that are not asked get no number."""
    used = np.unique(trace.models)
    numbers = np.full(len(trace.names), -1, np.int32)
    numbers[used] = np.arange(len(used), dtype=np.int32)
    names = tuple(trace.names[number] for number in used)
    return replace(trace, names=names, models=numbers[trace.models])
