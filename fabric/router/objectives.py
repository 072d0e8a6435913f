"""Whether a request will meet, and has met, its objectives; no clock."""

from collections.abc import Iterator
from dataclasses import dataclass

from fabric.core.errors import Overloaded
from fabric.core.request import Objectives, Timing
from fabric.router.forecast import Forecast

MIN_RETRY_S, MAX_RETRY_S = 0.05, 60.0
NAMES = ("ttft", "tpot", "e2e")


@dataclass(frozen=True, slots=True)
class Miss:
    """An objective that is predicted to be missed; ``late_s`` is by how much in all."""

    objective: str
    predicted_s: float
    allowed_s: float
    late_s: float


def in_force(asked: Objectives, configured: Objectives | None) -> Objectives:
    """The request's objectives; the model's where it states none. Either may ask for refusal."""
    if configured is None:
        return asked
    return Objectives(
        configured.ttft_s if asked.ttft_s is None else asked.ttft_s,
        configured.tpot_s if asked.tpot_s is None else asked.tpot_s,
        configured.e2e_s if asked.e2e_s is None else asked.e2e_s,
        asked.refuse_if_late or configured.refuse_if_late,
    )


def has_any(objectives: Objectives) -> bool:
    """Whether there is anything to meet."""
    times = (objectives.ttft_s, objectives.tpot_s, objectives.e2e_s)
    return any(time_s is not None for time_s in times)


def first_miss(objectives: Objectives, forecast: Forecast | None) -> Miss | None:
    """The first objective that the forecast misses; none of what can't be predicted."""
    if forecast is None:
        return None
    ttft_s, tpot_s, e2e_s = forecast.ttft_s, forecast.tpot_s, forecast.e2e_s
    if objectives.ttft_s is not None and ttft_s > objectives.ttft_s:
        return Miss("ttft", ttft_s, objectives.ttft_s, ttft_s - objectives.ttft_s)
    if objectives.tpot_s is not None and tpot_s > objectives.tpot_s:
        # A batch gets smaller by whole requests: by about a share of them must it shrink.
        late_s = (e2e_s - ttft_s) * (1 - objectives.tpot_s / tpot_s)
        return Miss("tpot", tpot_s, objectives.tpot_s, late_s)
    if objectives.e2e_s is not None and e2e_s > objectives.e2e_s:
        return Miss("e2e", e2e_s, objectives.e2e_s, e2e_s - objectives.e2e_s)
    return None


def refusal(model: str, miss: Miss) -> Overloaded:
    """The error that tells a client what it would have missed, and when to try again.

    Source: AlpaServe (Li et al., OSDI 2023), runtime scheduling: a request that can't meet its
    SLO is rejected on arrival, so that it doesn't make others late.
    """
    return Overloaded(
        f"a request to {model!r} would miss its {miss.objective} objective: "
        f"{miss.predicted_s:.4g} s predicted, {miss.allowed_s:.4g} s allowed",
        min(max(miss.late_s, MIN_RETRY_S), MAX_RETRY_S),
    )


def judged(
    objectives: Objectives, timing: Timing, num_output_tokens: float
) -> Iterator[tuple[str, bool]]:
    """Each objective that there is, and whether a complete request has met it.

    Args:
        objectives: What was in force.
        timing: As the group measured it.
        num_output_tokens: Of each sequence; a single token has no time after it.
    """
    num_gaps = num_output_tokens - 1
    tpot_s = timing.decode_s / num_gaps if num_gaps > 0 else 0.0
    pairs = (
        (objectives.ttft_s, timing.ttft_s),
        (objectives.tpot_s, tpot_s),
        (objectives.e2e_s, timing.e2e_s),
    )
    for name, (allowed_s, taken_s) in zip(NAMES, pairs, strict=True):
        if allowed_s is not None:
            yield name, taken_s <= allowed_s


def stated(objectives: Objectives) -> Iterator[str]:
    """The names of the objectives that there are."""
    pairs = zip(NAMES, (objectives.ttft_s, objectives.tpot_s, objectives.e2e_s), strict=True)
    return (name for name, allowed_s in pairs if allowed_s is not None)
