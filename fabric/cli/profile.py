"""``fabric profile``: how long a model's iterations and block copies take on a device group."""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fabric.cli.serve import add_config_arguments, read_config
from fabric.cli.table import format_table
from fabric.core.errors import ConfigError
from fabric.core.profile import Profile

if TYPE_CHECKING:
    from fabric.config import FabricConfig
    from fabric.engine.executor import ReadyExecutor
    from fabric.engine.settings import EngineSettings


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register the command."""
    parser = commands.add_parser(
        "profile", help="measure a model's prefill, decode and copy times, without Ray"
    )
    parser.set_defaults(run=_profile)
    parser.add_argument("model", metavar="MODEL", help="id of a model in the configuration")
    add_config_arguments(parser)
    parser.add_argument(
        "--source",
        help="measure this instead, on MODEL's group or the first: a folder, hf:, wheel: or .gguf",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write JSON for groups' `profile`")
    parser.add_argument("--quick", action="store_true", help="seconds instead of a minute")


def _profile(args: argparse.Namespace) -> int:
    settings, number = _settings(args, read_config(args))
    from fabric.engine.preparation import load_weights
    from fabric.engine.profile_store import take_profile, write_profile
    from fabric.engine.profiler import FULL, QUICK

    print(f"fabric: loading {settings.worker.models[number].source}", file=sys.stderr)
    with _workers(settings) as executor:
        # The group's other models stay where they are: one is measured as if it were alone.
        load_weights(executor, number)
        print("fabric: measuring; other load would show in the result", file=sys.stderr)
        profile = take_profile(settings, executor, number, QUICK if args.quick else FULL)
    print("\n\n".join(_tables(profile)))
    if args.out is not None:
        try:
            write_profile(profile, args.out)
        except OSError as error:
            raise ConfigError(f"cannot write {args.out}: {error.strerror}") from error
    return 0


def _settings(args: argparse.Namespace, config: "FabricConfig") -> "tuple[EngineSettings, int]":
    """The group that hosts the model, and the model's place in it.

    What is in no group, but has a source, takes the place of the first group's first model.
    """
    hosting = [group for group in config.groups if args.model in group.model_ids]
    if not hosting and args.source is None:
        known = ", ".join(model.id for model in config.models)
        raise ConfigError(f"{args.config} has no model {args.model!r}; it has {known}")
    group = (hosting or config.groups)[0]
    number = group.model_ids.index(args.model) if hosting else 0
    settings = config.engine_settings(group)
    # Nothing needs to outlive this process.
    worker = replace(settings.worker, parking=replace(settings.worker.parking, keep=False))
    if args.source is not None:
        models = list(worker.models)
        models[number] = replace(models[number], model=args.model, source=args.source)
        worker = replace(worker, models=tuple(models))
    return replace(settings, worker=worker), number


@contextlib.contextmanager
def _workers(settings: "EngineSettings") -> "Iterator[ReadyExecutor]":
    """Workers that know the group's models: in this process, or one process for each device."""
    from fabric.engine.build import open_local
    from fabric.engine.shard_host import ProcessShardHost, start_gang

    with contextlib.ExitStack() as stack:
        executor: ReadyExecutor
        if settings.parallel.num_devices == 1:
            executor = open_local(settings.worker)
        else:
            host = ProcessShardHost(settings.parallel)
            stack.callback(host.stop)
            executor = start_gang(settings, host)
        stack.callback(executor.close)
        yield executor


def _tables(profile: Profile) -> list[str]:
    prefill = [
        (str(tokens), f"{seconds * 1e3:.2f}", f"{tokens / seconds:.0f}")
        for tokens, seconds in profile.prefill
    ]
    return [
        _title(profile),
        format_table(("PROMPT TOKENS", "MS", "TOKENS/S"), prefill),
        "Milliseconds of an iteration that decodes a token of each sequence:\n"
        + _decode_table(profile),
        *([_copy_table(profile)] if profile.copies else []),
    ]


def _title(profile: Profile) -> str:
    subject = profile.subject
    assert subject is not None
    stored = subject.dtype
    if subject.quantization != "none":
        stored += f", {subject.quantization} weights"
    devices = f"{subject.pipeline}x{subject.tensor} {subject.device}"
    return (
        f"{subject.model} ({stored}) on {devices}, {subject.num_threads} threads each, "
        f"{subject.processor}"
    )


def _decode_table(profile: Profile) -> str:
    contexts = sorted({context for _, context, _ in profile.decode})
    rows: dict[int, list[str]] = {}
    for sequences, _, seconds in profile.decode:
        rows.setdefault(sequences, [str(sequences)]).append(f"{seconds * 1e3:.2f}")
    header = ("SEQUENCES", *(f"{context} TOKENS" for context in contexts))
    return format_table(header, list(rows.values()))


def _copy_table(profile: Profile) -> str:
    rows = [
        (copy.tier, copy.direction, f"{copy.bytes_per_s / 1e9:.2f}", f"{copy.latency_s * 1e6:.0f}")
        for copy in profile.copies
    ]
    return format_table(("COPY", "WAY", "GB/S", "LATENCY US"), rows)
