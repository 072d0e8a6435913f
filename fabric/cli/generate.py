"""``fabric generate``: one prompt, its answer printed as it arrives."""

import argparse
import asyncio
import dataclasses
import json
import sys

from fabric.cli.connection import add_connection_arguments, connect
from fabric.client import (
    ChatMessage,
    GenerateOptions,
    Generation,
    InvalidRequest,
    Objectives,
    PromptLike,
)

# Option, type, help; the names are those of the client's keyword arguments.
_NUMBERS = (
    ("max_tokens", int, "most output tokens"),
    ("min_tokens", int, "no end before this many output tokens"),
    ("temperature", float, "0 takes the most likely token"),
    ("top_p", float, "keep the most likely tokens with this probability together"),
    ("top_k", int, "keep this many most likely tokens"),
    ("min_p", float, "keep tokens with this share of the most likely one's probability"),
    ("repetition_penalty", float, "above 1 discourages tokens seen before"),
    ("presence_penalty", float, "above 0 discourages tokens generated before, once"),
    ("frequency_penalty", float, "above 0 discourages tokens generated before, each time"),
    ("seed", int, "makes sampling repeatable"),
    ("priority", int, "lower runs first"),
    ("expected_tokens", int, "guess at the length of the answer; for the order of service only"),
)


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register the command."""
    parser = commands.add_parser("generate", help="answer one prompt")
    parser.set_defaults(run=_generate)
    parser.add_argument("model", metavar="MODEL", help="id of a served model")
    parser.add_argument(
        "prompt", metavar="PROMPT", nargs="?", default="-", help="- reads standard input (default)"
    )
    parser.add_argument(
        "--chat",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="send a user's message for the chat template, or plain text",
    )
    parser.add_argument("--system", metavar="TEXT", help="system message of the chat")
    parser.add_argument("--json", action="store_true", help="print the whole answer as JSON")
    _add_generation_arguments(parser)
    add_connection_arguments(parser)


def _add_generation_arguments(parser: argparse.ArgumentParser) -> None:
    sampling = parser.add_argument_group("generation (absent: the model's own defaults)")
    for name, kind, text in _NUMBERS:
        sampling.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="X", help=text)
    sampling.add_argument("--stop", action="append", metavar="TEXT", help="end here; repeatable")
    sampling.add_argument("--ignore-eos", action="store_true", help="EOS is an ordinary token")
    sampling.add_argument("--tenant", help="whose request it is")
    sampling.add_argument(
        "--objective",
        dest="objectives",
        type=_objective,
        action="append",
        default=[],
        metavar="NAME:S",
        help="ttft, tpot or e2e within so many seconds; repeatable",
    )
    sampling.add_argument(
        "--refuse-if-late",
        action="store_true",
        help="be refused at once rather than miss an objective, this request's or the model's",
    )
    sampling.add_argument("--timeout", type=float, metavar="S", help="deadline in seconds")


def _generate(args: argparse.Namespace) -> int:
    prompt = _prompt(args)
    answer = asyncio.run(_stream(args, prompt, _options(args)))
    if args.json:
        print(json.dumps(dataclasses.asdict(answer), indent=2))
    elif answer.timing.load_s > 0:
        print(f"fabric: waited {_seconds(answer.timing.load_s)} for the weights", file=sys.stderr)
    return 0


async def _stream(
    args: argparse.Namespace, prompt: PromptLike, options: GenerateOptions
) -> Generation:
    async with connect(args) as client, client.stream(args.model, prompt, **options) as stream:
        if args.json:
            return await stream.collect()
        try:
            async for piece in stream.text():
                print(piece, end="", flush=True)
        finally:
            print(flush=True)
        return stream.result


def _seconds(time_s: float) -> str:
    return f"{time_s:.1f} s" if time_s >= 0.1 else f"{time_s * 1e3:.1f} ms"


def _prompt(args: argparse.Namespace) -> PromptLike:
    text: str = sys.stdin.read() if args.prompt == "-" else args.prompt
    if not args.chat:
        if args.system is not None:
            raise InvalidRequest.of("--system", "needs --chat")
        return text
    system = [] if args.system is None else [ChatMessage("system", args.system)]
    return [*system, ChatMessage("user", text)]


def _options(args: argparse.Namespace) -> GenerateOptions:
    given = {name: getattr(args, name) for name, _, _ in _NUMBERS}
    options: GenerateOptions = {"timeout_s": args.timeout, "stop": args.stop or ()}
    options.update({name: value for name, value in given.items() if value is not None})  # type: ignore[typeddict-item]
    if args.ignore_eos:
        options["ignore_eos"] = True
    if args.tenant is not None:
        options["tenant"] = args.tenant
    if args.objectives or args.refuse_if_late:
        times_s = dict(args.objectives)
        options["objectives"] = Objectives(**times_s, refuse_if_late=args.refuse_if_late)
    return options


def _objective(text: str) -> tuple[str, float]:
    name, _, seconds = text.partition(":")
    if name not in ("ttft", "tpot", "e2e"):
        raise argparse.ArgumentTypeError(f"{text}: choose from ttft, tpot, e2e, as ttft:S")
    return f"{name}_s", float(seconds)
