"""``fabric bench serve``: open-loop load over gRPC, reported as ``vllm bench serve`` does."""

import argparse
import asyncio
import json
import math
import sys
from datetime import datetime
from pathlib import Path

from fabric.cli.bench_load import LoadOptions, run_load, warm_up
from fabric.cli.bench_metrics import SLO_METRICS, RequestRecord
from fabric.cli.bench_report import BenchSettings, build_result, measured_rate, table
from fabric.cli.bench_workload import (
    Arrival,
    PlannedRequest,
    fit_trace,
    gamma_arrivals,
    plan_prompts,
    plan_random,
    read_prompts,
    read_trace,
)
from fabric.cli.connection import add_connection_arguments, connect
from fabric.client import GenerateOptions, RetryPolicy
from fabric.core.errors import ConfigError

NO_CAP = 2**31 - 1


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register the command."""
    bench = commands.add_parser("bench", help="measure the running fabric")
    kinds = bench.add_subparsers(metavar="KIND", required=True)
    serve = kinds.add_parser("serve", help="open-loop load over gRPC")
    serve.set_defaults(run=_bench_serve)
    serve.add_argument("--model", required=True, help="id of a served model")
    _add_workload_arguments(serve)
    _add_measuring_arguments(serve)
    add_connection_arguments(serve)


def _add_workload_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("workload")
    group.add_argument("--num-prompts", type=_positive_int, default=100, help="(%(default)s)")
    group.add_argument(
        "--request-rate", type=_positive, default=math.inf, help="per second (all at once)"
    )
    shape = group.add_mutually_exclusive_group()
    shape.add_argument("--burstiness", type=_positive, default=1.0, help="1 / CV²; 1 is Poisson")
    shape.add_argument("--cv", type=_not_negative, help="coefficient of variation of arrival gaps")
    group.add_argument("--trace", type=Path, help="Azure LLM .csv or Mooncake .jsonl, not a rate")
    group.add_argument("--trace-scale", type=_positive, default=1.0, help="multiplies its times")
    group.add_argument("--max-input-len", type=_positive_int, default=NO_CAP, help="cap a trace")
    group.add_argument("--max-output-len", type=_positive_int, default=NO_CAP, help="cap a trace")
    group.add_argument("--dataset", default="random", help="random token ids, or a .jsonl file")
    group.add_argument("--chat", action="store_true", help="send a file's prompts as chats")
    group.add_argument("--input-len", type=_positive_int, default=128, help="random (%(default)s)")
    group.add_argument("--output-len", type=_positive_int, default=128, help="(%(default)s)")
    group.add_argument("--ignore-eos", action="store_true", help="answers have their full length")
    group.add_argument("--tenant", help="whose requests they are")
    group.add_argument(
        "--tell-lengths", action="store_true", help="send each answer's length as expected_tokens"
    )
    group.add_argument("--temperature", type=float, help="the model's own if absent")
    group.add_argument("--seed", type=int, default=0, help="of arrivals and prompts")


def _add_measuring_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("measuring")
    group.add_argument("--max-concurrency", type=_positive_int, help="most requests in flight")
    group.add_argument("--request-timeout", type=_positive, metavar="S", help="deadline of each")
    group.add_argument("--num-warmups", type=int, default=0, help="unmeasured requests before")
    group.add_argument(
        "--goodput", type=_slo, nargs="+", default=[], metavar="METRIC:MS", help="ttft, tpot, e2el"
    )
    group.add_argument(
        "--metric-percentiles", type=_percents, default=(99.0,), metavar="P,P", help="(99)"
    )
    group.add_argument("--save-texts", action="store_true", help="put the answers into the JSON")
    group.add_argument(
        "--json", "--result-file", type=Path, dest="result_file", metavar="OUT", help="write JSON"
    )


def _bench_serve(args: argparse.Namespace) -> int:
    records, duration_s, settings = asyncio.run(_measure(args))
    result = build_result(settings, records, duration_s, datetime.now())
    print("\n".join(table(result, settings.percents)))
    for error in sorted({record.error for record in records if record.error})[:5]:
        print(f"fabric: {error}", file=sys.stderr)
    if args.result_file:
        _write(args.result_file, json.dumps(result, indent=1))
    return 0 if any(record.is_completed for record in records) else 1


async def _measure(
    args: argparse.Namespace,
) -> tuple[list[RequestRecord], float, BenchSettings]:
    arrivals = _arrivals(args)
    generate: GenerateOptions = {"ignore_eos": args.ignore_eos}
    if args.temperature is not None:
        generate["temperature"] = args.temperature
    if args.request_timeout is not None:
        generate["timeout_s"] = args.request_timeout
    if args.tenant is not None:
        generate["tenant"] = args.tenant
    limit, is_chat = args.max_concurrency, args.chat
    options = LoadOptions(args.model, limit, is_chat, args.tell_lengths, generate)
    async with connect(args, RetryPolicy(max_attempts=1)) as client:
        vocab_size = (await client.model(args.model)).card.vocab_size
        requests = _requests(args, arrivals, vocab_size)
        await warm_up(client, requests[0], args.num_warmups, options)
        records, duration_s = await run_load(client, requests, options)
    return records, duration_s, _settings(args, arrivals)


def _arrivals(args: argparse.Namespace) -> list[Arrival]:
    if args.trace is not None:
        trace = read_trace(args.trace)
        caps = (args.max_input_len, args.max_output_len)
        arrivals = fit_trace(trace, args.num_prompts, args.trace_scale, *caps)
        if not arrivals:
            raise ConfigError(f"{args.trace} holds no requests")
        return arrivals
    times_s = gamma_arrivals(args.num_prompts, args.request_rate, _cv(args), args.seed)
    return [Arrival(at_s, args.input_len, args.output_len) for at_s in times_s]


def _requests(
    args: argparse.Namespace, arrivals: list[Arrival], vocab_size: int
) -> list[PlannedRequest]:
    if args.dataset == "random":
        return plan_random(arrivals, vocab_size, args.seed)
    return plan_prompts(arrivals, read_prompts(Path(args.dataset)))


def _settings(args: argparse.Namespace, arrivals: list[Arrival]) -> BenchSettings:
    cv = _cv(args)
    rate_per_s, burstiness = args.request_rate, 1 / cv**2 if cv else math.inf
    if args.trace is not None:
        rate_per_s, burstiness = measured_rate([arrival.at_s for arrival in arrivals])
    return BenchSettings(
        model=args.model,
        request_rate=rate_per_s,
        burstiness=burstiness,
        max_concurrency=args.max_concurrency,
        percents=args.metric_percentiles,
        slos_ms=dict(args.goodput),
        keeps_texts=args.save_texts,
    )


def _cv(args: argparse.Namespace) -> float:
    return float(args.burstiness**-0.5 if args.cv is None else args.cv)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error}") from error


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _not_negative(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0")
    return value


def _positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _percents(text: str) -> tuple[float, ...]:
    values = tuple(float(part) for part in text.split(","))
    if not all(0 <= value <= 100 for value in values):
        raise argparse.ArgumentTypeError(f"{text} is not within 0 to 100")
    return values


def _slo(text: str) -> tuple[str, float]:
    name, _, bound = text.partition(":")
    if name not in SLO_METRICS:
        raise argparse.ArgumentTypeError(
            f"{text}: choose from {', '.join(SLO_METRICS)}, as ttft:MS"
        )
    return name, _positive(bound)
