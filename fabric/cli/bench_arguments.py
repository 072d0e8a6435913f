"""What ``fabric bench serve`` can be told."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from fabric.cli.bench_models import parse_model
from fabric.cli.bench_slos import parse_slo

NO_CAP = 2**31 - 1
_T = TypeVar("_T")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Which models are asked, and how often each."""
    parser.add_argument(
        "--model",
        dest="models",
        type=_read(parse_model),
        action="append",
        required=True,
        metavar="NAME[=WEIGHT]",
        help="a served model and its part of the requests (as many as others); repeatable",
    )
    parser.add_argument(
        "--popularity",
        type=_not_negative,
        metavar="EXPONENT",
        help="the i-th model is asked in proportion to i^-EXPONENT; 0.5 in AlpaServe",
    )


def add_workload_arguments(parser: argparse.ArgumentParser) -> None:
    """What is sent, and when."""
    group = parser.add_argument_group("workload")
    group.add_argument("--num-prompts", type=_positive_int, default=100, help="(%(default)s)")
    group.add_argument(
        "--request-rate",
        type=_positive,
        default=math.inf,
        help="per second, of all models together (all at once)",
    )
    shape = group.add_mutually_exclusive_group()
    shape.add_argument("--burstiness", type=_positive, default=1.0, help="1 / CV²; 1 is Poisson")
    shape.add_argument("--cv", type=_not_negative, help="variation of each model's arrival gaps")
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


def add_measuring_arguments(parser: argparse.ArgumentParser) -> None:
    """What is measured, and where it goes."""
    group = parser.add_argument_group("measuring")
    group.add_argument("--max-concurrency", type=_positive_int, help="most requests in flight")
    group.add_argument("--request-timeout", type=_positive, metavar="S", help="deadline of each")
    group.add_argument("--num-warmups", type=int, default=0, help="unmeasured ones of each model")
    group.add_argument(
        "--metric-percentiles", type=_percents, default=(99.0,), metavar="P,P", help="(99)"
    )
    group.add_argument("--save-texts", action="store_true", help="put the answers into the JSON")
    group.add_argument(
        *("--json", "--save", "--result-file"),
        type=Path,
        dest="result_file",
        metavar="OUT",
        help="write JSON",
    )


def add_slo_arguments(parser: argparse.ArgumentParser) -> None:
    """What a request has to meet."""
    group = parser.add_argument_group("service level objectives")
    group.add_argument(
        "--goodput",
        type=_read(parse_slo),
        nargs="+",
        default=[],
        metavar="METRIC:MS",
        help="ttft, tpot, e2el of all models",
    )
    group.add_argument(
        "--goodput-of",
        nargs="+",
        action="append",
        default=[],
        metavar="MODEL METRIC:MS",
        help="and those of one model; repeatable",
    )
    group.add_argument(
        "--slo-scale",
        type=_positive,
        metavar="X",
        help="e2el is X times what the model's typical request takes alone, measured before",
    )
    group.add_argument(
        "--refuse-if-late",
        action="store_true",
        help="ask for these, and to be refused rather than served late",
    )


def _read(parse: Callable[[str], _T]) -> Callable[[str], _T]:
    """Let argparse show what a parser of ours says is wrong."""

    def parsed(text: str) -> _T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parsed


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
