"""The latencies that a benchmark judges requests by, model by model."""

import statistics
from collections.abc import Mapping, Sequence

from fabric.cli.bench_load import LoadOptions, send_alone
from fabric.cli.bench_models import parse_positive
from fabric.cli.bench_prompts import PlannedRequest
from fabric.client import AsyncClient, Objectives
from fabric.core.errors import ConfigError

# Bounds in milliseconds by metric: ttft, tpot and e2el.
SlosMs = Mapping[str, float]
SLO_METRICS = ("ttft", "tpot", "e2el")

_NUM_ALONE = 3


def parse_slo(text: str) -> tuple[str, float]:
    """Read ``METRIC:MS``.

    Raises:
        ValueError: There is no such metric, or the bound is not a number above 0.
    """
    name, _, bound = text.partition(":")
    if name not in SLO_METRICS:
        raise ValueError(f"{text}: choose from {', '.join(SLO_METRICS)}, as ttft:MS")
    return name, parse_positive(bound, text)


def slos_of(
    models: Sequence[str],
    for_all: SlosMs,
    of_models: Sequence[Sequence[str]],
    scaled_ms: Mapping[str, float],
) -> dict[str, SlosMs]:
    """Each model's bounds; what is said of one model goes before what is said of all.

    Args:
        models: Those that are asked.
        for_all: Bounds of every model.
        of_models: A model's name, and then its bounds as text.
        scaled_ms: End-to-end bounds that were measured.

    Raises:
        ConfigError: Bounds are of a model that isn't asked, or can't be read.
    """
    slos: dict[str, dict[str, float]] = {name: dict(for_all) for name in models}
    for name, bound_ms in scaled_ms.items():
        slos[name].setdefault("e2el", bound_ms)
    for name, *bounds in of_models:
        if name not in slos or not bounds:
            raise ConfigError(f"--goodput-of {name}: needs one of --model, and its METRIC:MS")
        try:
            slos[name].update(map(parse_slo, bounds))
        except ValueError as error:
            raise ConfigError(f"--goodput-of {name}: {error}") from error
    return {name: _in_order(bounds) for name, bounds in slos.items() if bounds}


def _in_order(bounds: SlosMs) -> SlosMs:
    return {metric: bounds[metric] for metric in SLO_METRICS if metric in bounds}


def objectives_of(slos_ms: SlosMs) -> Objectives:
    """What a request asks for that would rather be refused than miss its bounds."""
    ttft_s, tpot_s, e2e_s = (
        slos_ms[name] / 1e3 if name in slos_ms else None for name in SLO_METRICS
    )
    return Objectives(ttft_s, tpot_s, e2e_s, refuse_if_late=True)


async def unloaded_ms(
    client: AsyncClient, requests: Sequence[PlannedRequest], options: LoadOptions
) -> dict[str, float]:
    """Each model's end-to-end milliseconds while nothing else runs and its weights are there.

    The request that is measured has the median output length of the model's requests; it is the
    median of three, after one that is not counted.

    Raises:
        RequestError: One failed.

    Source: AlpaServe (Li et al., OSDI 2023), section 6: SLOs are multiples of this.
    """
    by_model: dict[str, list[PlannedRequest]] = {}
    for request in requests:
        by_model.setdefault(request.model, []).append(request)
    found = {}
    for model, asked in by_model.items():
        typical = sorted(asked, key=lambda request: request.max_tokens)[len(asked) // 2]
        times_s = [await send_alone(client, typical, options) for _ in range(_NUM_ALONE + 1)]
        found[model] = statistics.median(times_s[1:]) * 1e3
    return found
