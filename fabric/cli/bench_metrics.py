"""What a benchmark's records say: latencies, throughput and goodput, under vLLM's key names."""

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

METRICS = ("ttft", "tpot", "itl", "e2el")


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """What happened to one request; times in seconds.

    ``arrival_s`` counts from the benchmark's start; ``ttft_s`` and ``e2e_s`` count from the
    *scheduled* arrival, so that waiting in this client is part of the latency. ``itls_s`` has
    one gap for each message after the first; ``message_lens`` are the tokens of each message.
    ``is_refused`` is an error that says to try again later (RESOURCE_EXHAUSTED); in ``load_s``
    the model's weights were on their way.
    """

    arrival_s: float
    input_len: int
    output_len: int = 0
    ttft_s: float = 0.0
    itls_s: tuple[float, ...] = ()
    e2e_s: float = 0.0
    num_preemptions: int = 0
    swapped_bytes: int = 0
    message_lens: tuple[int, ...] = ()
    text: str = ""
    error: str = ""
    is_refused: bool = False
    load_s: float = 0.0
    model: str = ""

    @property
    def is_completed(self) -> bool:
        """Whether all of the answer arrived."""
        return not self.error

    @property
    def tpot_s(self) -> float:
        """Seconds for each output token after the first; 0 if there is no other."""
        if self.output_len < 2:
            return 0.0
        return (self.e2e_s - self.ttft_s) / (self.output_len - 1)

    def meets_all(self, slos_ms: Mapping[str, float]) -> bool:
        """Whether the request completed within every bound."""
        return all(self.meets(name, bound_ms) for name, bound_ms in slos_ms.items())

    def meets(self, metric: str, bound_ms: float) -> bool:
        """Whether the request completed within one bound: ttft, tpot or e2el in milliseconds."""
        measured_s = {"ttft": self.ttft_s, "tpot": self.tpot_s, "e2el": self.e2e_s}[metric]
        return self.is_completed and measured_s * 1e3 <= bound_ms


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The value below which ``percent`` % of ascending values lie, linearly interpolated."""
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def summarize(name: str, values_s: Sequence[float], percents: Sequence[float]) -> dict[str, float]:
    """Mean, median, population standard deviation and percentiles, in milliseconds; 0 if none."""
    ordered = sorted(value * 1e3 for value in values_s) or [0.0]
    return {
        f"mean_{name}_ms": statistics.fmean(ordered),
        f"median_{name}_ms": statistics.median(ordered),
        f"std_{name}_ms": statistics.pstdev(ordered),
        **{f"p{percent:g}_{name}_ms": percentile(ordered, percent) for percent in percents},
    }


def latency_summary(
    records: Sequence[RequestRecord], percents: Sequence[float]
) -> dict[str, float]:
    """Summaries of TTFT, TPOT (of replies with at least two tokens), ITL and end-to-end time."""
    completed = [record for record in records if record.is_completed]
    values = {
        "ttft": [record.ttft_s for record in completed],
        "tpot": [record.tpot_s for record in completed if record.output_len > 1],
        "itl": [gap for record in completed for gap in record.itls_s],
        "e2el": [record.e2e_s for record in completed],
    }
    summaries = (summarize(name, values[name], percents) for name in METRICS)
    return {key: value for summary in summaries for key, value in summary.items()}


def throughput(records: Sequence[RequestRecord], duration_s: float) -> dict[str, float]:
    """Counts and rates over the whole run; failed requests count as failed only.

    ``failed`` is all that did not complete, as vLLM counts, and ``refused`` a part of it.
    """
    completed = [record for record in records if record.is_completed]
    num_input = sum(record.input_len for record in completed)
    num_output = sum(record.output_len for record in completed)
    return {
        "duration": duration_s,
        "completed": len(completed),
        "failed": len(records) - len(completed),
        "refused": sum(record.is_refused for record in records),
        "total_input_tokens": num_input,
        "total_output_tokens": num_output,
        "request_throughput": len(completed) / duration_s,
        "output_throughput": num_output / duration_s,
        "total_token_throughput": (num_input + num_output) / duration_s,
        "max_output_tokens_per_s": busiest_second(records),
        "max_concurrent_requests": most_at_once(records),
        "preemptions": sum(record.num_preemptions for record in records),
        "kv_bytes_swapped": sum(record.swapped_bytes for record in records),
        **cold_starts(records),
    }


def cold_starts(records: Sequence[RequestRecord]) -> dict[str, float]:
    """How many requests found their model's weights off the device, and their mean wait for them.

    Requests that wait for the same weights are counted each.
    """
    waits_ms = [record.load_s * 1e3 for record in records if record.load_s > 0]
    mean_ms = statistics.fmean(waits_ms) if waits_ms else 0.0
    return {"cold_starts": len(waits_ms), "mean_cold_start_ms": mean_ms}


def most_at_once(records: Sequence[RequestRecord]) -> int:
    """The largest number of completed requests that were under way at one time."""
    spans = [(r.arrival_s, r.arrival_s + r.e2e_s) for r in records if r.is_completed]
    changes = sorted([(end, -1) for _, end in spans] + [(start, 1) for start, _ in spans])
    return max(accumulate((change for _, change in changes), initial=0))


def busiest_second(records: Sequence[RequestRecord]) -> int:
    """Most output tokens of completed requests within one whole second of the run."""
    tokens: Counter[int] = Counter()
    for record in records:
        if record.is_completed:
            first_s = record.arrival_s + record.ttft_s
            times_s = accumulate(record.itls_s, initial=first_s)
            for time_s, count in zip(times_s, record.message_lens, strict=False):
                tokens[math.floor(time_s)] += count
    return max(tokens.values(), default=0)


def goodput(
    records: Sequence[RequestRecord],
    slos_ms: Mapping[str, Mapping[str, float]],
    duration_s: float,
) -> dict[str, object]:
    """Requests a second that met all SLOs, and the share of *all* requests that did.

    Args:
        records: Every request, the failed ones too: they miss their SLOs. Those to models
            without SLOs are left out.
        slos_ms: Bounds for ttft, tpot and e2el by model; without any, goodput is None.
        duration_s: Of the whole run.

    Source: DistServe (Zhong et al., OSDI 2024) for goodput; AlpaServe for SLO attainment.
    """
    judged = [(record, slos_ms[record.model]) for record in records if slos_ms.get(record.model)]
    if not judged:
        return {"request_goodput": None, "slo_attainment": None}
    num_good = sum(record.meets_all(bounds) for record, bounds in judged)
    return {
        "request_goodput": num_good / duration_s,
        "slo_attainment": num_good / len(judged),
        "slo_attainment_by_metric": {
            metric: statistics.fmean(r.meets(metric, b[metric]) for r, b in judged if metric in b)
            for metric in dict.fromkeys(name for _, bounds in judged for name in bounds)
        },
    }
