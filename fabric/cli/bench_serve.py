"""``fabric bench serve``: open-loop load over gRPC, reported as ``vllm bench serve`` does."""

import argparse
import asyncio
import dataclasses
import json
import math
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from fabric.cli.bench_arguments import (
    add_measuring_arguments,
    add_model_arguments,
    add_slo_arguments,
    add_workload_arguments,
)
from fabric.cli.bench_load import LoadOptions, run_load, warm_up
from fabric.cli.bench_metrics import RequestRecord
from fabric.cli.bench_models import ModelShare, draw_mix, draw_models, shares_of
from fabric.cli.bench_prompts import (
    PlannedRequest,
    fit_contexts,
    fit_texts,
    plan_prompts,
    plan_random,
    read_prompts,
)
from fabric.cli.bench_report import BenchSettings, build_result, measured_rate, tables
from fabric.cli.bench_slos import objectives_of, slos_of, unloaded_ms
from fabric.cli.bench_workload import fit_trace
from fabric.cli.connection import add_connection_arguments, connect
from fabric.cli.table import terminal_width
from fabric.client import AsyncClient, GenerateOptions, Objectives, RetryPolicy
from fabric.core.errors import ConfigError
from fabric.core.traces import Arrival, read_trace


def add_parser(kinds: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register the kind of benchmark."""
    serve = kinds.add_parser("serve", help="open-loop load over gRPC")
    serve.set_defaults(run=_bench_serve)
    add_model_arguments(serve)
    add_workload_arguments(serve)
    add_slo_arguments(serve)
    add_measuring_arguments(serve)
    add_connection_arguments(serve)


def _bench_serve(args: argparse.Namespace) -> int:
    shares = shares_of(args.models, args.popularity)
    # Wrong options are told before anything is measured.
    slos_of([each.model for each in shares], dict(args.goodput), args.goodput_of, {})
    records, duration_s, settings = asyncio.run(_measure(args, shares))
    result = build_result(settings, records, duration_s, datetime.now())
    print("\n".join(tables(result, settings.percents, terminal_width())))
    _tell_errors(records)
    if args.result_file:
        _write(args.result_file, json.dumps(result, indent=1))
    return 0 if any(record.is_completed for record in records) else 1


async def _measure(
    args: argparse.Namespace, shares: Sequence[ModelShare]
) -> tuple[list[RequestRecord], float, BenchSettings]:
    arrivals = _arrivals(args, shares)
    options = _options(args)
    async with connect(args, RetryPolicy(max_attempts=1)) as client:
        requests = await _requests(args, client, arrivals)
        await warm_up(client, requests, args.num_warmups, options)
        settings = await _judged(args, client, requests, shares)
        options = dataclasses.replace(options, objectives=_objectives(args, settings))
        records, duration_s = await run_load(client, requests, options)
    return records, duration_s, settings


def _options(args: argparse.Namespace) -> LoadOptions:
    generate: GenerateOptions = {"ignore_eos": args.ignore_eos}
    if args.temperature is not None:
        generate["temperature"] = args.temperature
    if args.request_timeout is not None:
        generate["timeout_s"] = args.request_timeout
    if args.tenant is not None:
        generate["tenant"] = args.tenant
    return LoadOptions(args.max_concurrency, args.chat, args.tell_lengths, generate)


def _arrivals(args: argparse.Namespace, shares: Sequence[ModelShare]) -> list[Arrival]:
    if args.trace is None:
        mix = draw_mix(shares, args.num_prompts, args.request_rate, _cv(args), args.seed)
        return [Arrival(at_s, args.input_len, args.output_len, model) for at_s, model in mix]
    trace = read_trace(args.trace)
    caps = (args.max_input_len, args.max_output_len)
    rows = fit_trace(trace, args.num_prompts, args.trace_scale, *caps)
    if not rows:
        raise ConfigError(f"{args.trace} holds no requests")
    models = draw_models(shares, len(rows), args.seed)
    return [dataclasses.replace(row, model=m) for row, m in zip(rows, models, strict=True)]


async def _requests(
    args: argparse.Namespace, client: AsyncClient, arrivals: list[Arrival]
) -> list[PlannedRequest]:
    cards = {name: (await client.model(name)).card for name, _ in args.models}
    if args.dataset != "random":
        planned = plan_prompts(arrivals, read_prompts(Path(args.dataset)))
        return await fit_texts(client, planned, is_chat=args.chat)
    limits = {name: card.max_model_len for name, card in cards.items()}
    fitted = fit_contexts(arrivals, limits)
    cut = Counter(b.model for a, b in zip(arrivals, fitted, strict=True) if a != b)
    for name, count in sorted(cut.items()):
        print(f"fabric: {name}: {count} requests are cut to {limits[name]} tokens", file=sys.stderr)
    return plan_random(fitted, {n: card.vocab_size for n, card in cards.items()}, args.seed)


async def _judged(
    args: argparse.Namespace,
    client: AsyncClient,
    requests: Sequence[PlannedRequest],
    shares: Sequence[ModelShare],
) -> BenchSettings:
    """Measure what the SLOs depend on, and say what the benchmark was."""
    alone_ms: dict[str, float] = {}
    if args.slo_scale is not None:
        alone_ms = await unloaded_ms(client, requests, _options(args))
    scaled_ms = {name: args.slo_scale * ms for name, ms in alone_ms.items()}
    models = [each.model for each in shares]
    rate_per_s, burstiness = args.request_rate, 1 / _cv(args) ** 2 if _cv(args) else math.inf
    if args.trace is not None:
        rate_per_s, burstiness = measured_rate([request.at_s for request in requests])
    return BenchSettings(
        shares=tuple(shares),
        request_rate=rate_per_s,
        burstiness=burstiness,
        max_concurrency=args.max_concurrency,
        percents=args.metric_percentiles,
        slos_ms=slos_of(models, dict(args.goodput), args.goodput_of, scaled_ms),
        unloaded_e2el_ms=alone_ms,
        keeps_texts=args.save_texts,
    )


def _objectives(args: argparse.Namespace, settings: BenchSettings) -> dict[str, Objectives]:
    """Those without bounds of their own are judged by what the fabric's configuration says."""
    if not args.refuse_if_late:
        return {}
    names = [each.model for each in settings.shares]
    return {name: objectives_of(settings.slos_ms.get(name, {})) for name in names}


def _cv(args: argparse.Namespace) -> float:
    return float(args.burstiness**-0.5 if args.cv is None else args.cv)


def _tell_errors(records: Sequence[RequestRecord]) -> None:
    """One line for each kind of error, with the first of its messages."""
    failed = [record.error for record in records if record.error]
    counts = Counter(error.partition(":")[0] for error in failed)
    for kind, count in counts.most_common():
        first = next(error for error in failed if error.partition(":")[0] == kind)
        more = f" (and {count - 1} more)" if count > 1 else ""
        print(f"fabric: {first}{more}", file=sys.stderr)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error}") from error
