"""``fabric-plan parallelize``: all ways to cut one model over devices that are worth having."""

import time
from argparse import Namespace
from collections.abc import Collection, Sequence
from pathlib import Path

from fabric.core.errors import ConfigError
from placement.catalog import device, shape, shape_from_file
from placement.cli import units
from placement.cli.output import Answer, give
from placement.cli.progress import progress_bar
from placement.cli.reports import Cut, FrontReport, StageReport
from placement.cli.strategy_tables import strategy_table
from placement.cli.tables import Cell, Table
from placement.devices import DeviceType
from placement.parallelize.front import Front, PipelinePlan
from placement.parallelize.graph import Workload
from placement.parallelize.inter import PipelineSpace, parallelize
from placement.parallelize.intra_costs import IntraCosts
from placement.parallelize.stage import Phase
from placement.parallelize.stages_transfer import activation_transfer
from placement.shape import ModelShape

MEMORY_SHARE = 0.9
# Cuts that differ by less are one to people.
TOLERANCE = 0.01
# Rows of a table differ by more, in times or bytes.
LIKE, LIKE_BYTES = 1.03, 1.3
CHOICES = ("fastest", "highest_rate", "smallest", "best_filled")


def run(args: Namespace) -> int:
    """Cut, and print the front and the strategies of the fastest cut."""
    kind, model = device(args.device), _shape(args.model)
    nodes, per_node = args.mesh
    budget = args.memory or int(kind.memory_bytes * MEMORY_SHARE)
    phases = _phases(args)
    kv_tokens = args.decode * (args.context + 1)
    start_s = time.perf_counter()
    with progress_bar(args.quiet) as progress:
        progress(f"cutting {model.name}", 0.0)
        costs = IntraCosts(model, kind, Workload(phases, kv_tokens), memory_bytes=budget)
        front = parallelize(costs, _space(model, kind, phases, (nodes, per_node, budget)))
    if not front.plans:
        raise ConfigError(
            f"{model.name}: no way to cut it over {nodes}x{per_node} {kind.name} takes at most "
            f"{units.gibibytes(budget)} GiB of each, with the KV of {kv_tokens:,} tokens"
        )
    report = FrontReport(
        model=model.name,
        device=kind.name,
        num_devices=nodes * per_node,
        budget_bytes=budget,
        phases=tuple((phase.name, phase.weight) for phase in phases),
        cuts=tuple(map(_cut, front.plans)),
        choices=_choices(front),
        solve_s=time.perf_counter() - start_s,
    )
    title = f"{model.name} on {nodes}x{per_node} {kind.name}"
    give(Answer(title, report, _tables(report), _notes(report, phases, kv_tokens)), args)
    return 0


def _shape(name: str) -> ModelShape:
    path = Path(name)
    if path.suffix != ".json":
        return shape(name)
    return shape_from_file(path, path.parent.name or path.stem)


def _phases(args: Namespace) -> tuple[Phase, Phase]:
    """Iterations that compute prompts, and those that compute one token of each sequence."""
    return (
        Phase("prefill", args.prefill, 1, 0, 1.0),
        Phase("decode", args.decode, args.decode, args.context, args.steps),
    )


def _space(
    model: ModelShape, kind: DeviceType, phases: Sequence[Phase], limits: tuple[int, int, int]
) -> PipelineSpace:
    nodes, per_node, budget = limits
    return PipelineSpace(
        num_devices=nodes * per_node,
        devices_per_node=per_node,
        memory_bytes=budget,
        inside=activation_transfer(model, phases, kind.inside),
        outside=activation_transfer(model, phases, kind.outside),
        tolerance=TOLERANCE,
    )


def _cut(plan: PipelinePlan) -> Cut:
    stages = tuple(
        StageReport(
            first=stage.first,
            end=stage.end,
            nodes=stage.mesh.slow,
            devices=stage.mesh.fast,
            seconds=stage.seconds,
            phase_s=stage.phase_s,
            bytes=stage.cost.bytes,
            strategies=stage.cost.strategies,
        )
        for stage in plan.stages
    )
    return Cut(plan.latency_s, plan.slowest_s, plan.bytes, plan.phase_s, stages)


def _choices(front: Front) -> tuple[tuple[str, int], ...]:
    """Where on the front the plans are that somebody may want."""
    return tuple((name, front.plans.index(getattr(front, name))) for name in CHOICES)


def _tables(report: FrontReport) -> tuple[Table, ...]:
    names: dict[int, list[str]] = {}
    for name, index in report.choices:
        names.setdefault(index, []).append(name.replace("_", " "))
    times = [f"{name} step" for name, _ in report.phases]
    header = ("stages", "devices of each", "layers of each", "latency", "slowest stage", *times)
    indices = shown(report.cuts, names)
    rows = tuple(_row(report.cuts[index], names.get(index, [])) for index in indices)
    title = (
        f"Cuts that no other beats: {len(report.cuts)}, of which {len(indices)} unlike each other"
    )
    front = Table(title, (*header, "GiB", "is the"), rows)
    fastest = report.cuts[dict(report.choices)["fastest"]]
    phases = [name for name, _ in report.phases]
    stages = fastest.stages
    return (front, *(strategy_table(stages, number, phases) for number in _distinct(stages)))


def _distinct(stages: Sequence[StageReport]) -> list[int]:
    """The first of each run of stages that do the same."""
    return [
        number
        for number, stage in enumerate(stages)
        if number == 0 or stage.strategies != stages[number - 1].strategies
    ]


def _row(cut: Cut, names: Sequence[str]) -> tuple[str | Cell, ...]:
    meshes = [f"{stage.nodes}x{stage.devices}" for stage in cut.stages]
    layers = [str(stage.end - stage.first) for stage in cut.stages]
    return (
        str(len(cut.stages)),
        " ".join(_runs(meshes)),
        " ".join(_runs(layers)),
        units.seconds(cut.latency_s),
        units.seconds(cut.bottleneck_s),
        *map(units.seconds, cut.phase_s),
        units.gibibytes(cut.bytes),
        Cell(", ".join(names), "bold"),
    )


def _runs(words: Sequence[str]) -> list[str]:
    """Words with their repetitions counted."""
    runs: list[tuple[str, int]] = []
    for word in words:
        if runs and runs[-1][0] == word:
            runs[-1] = (word, runs[-1][1] + 1)
        else:
            runs.append((word, 1))
    return [word if count == 1 else f"{count}({word})" for word, count in runs]


def shown(cuts: Sequence[Cut], wanted: Collection[int]) -> list[int]:
    """Which cuts a table has: those that are wanted, and those that are unlike all before."""
    rows = list(wanted)
    for index, cut in enumerate(cuts):
        if not any(_is_about(cuts[row], cut) for row in rows):
            rows.append(index)
    return sorted(rows)


def _is_about(known: Cut, cut: Cut) -> bool:
    """Whether a cut is hardly quicker or smaller than one that is shown."""
    return (
        known.latency_s < LIKE * cut.latency_s
        and known.bottleneck_s < LIKE * cut.bottleneck_s
        and known.bytes < LIKE_BYTES * cut.bytes
    )


def _notes(report: FrontReport, phases: Sequence[Phase], kv_tokens: int) -> tuple[str, ...]:
    prefill, decode = phases
    return (
        f"Latency is of {prefill.weight:g} prefill step of {prefill.num_tokens:,} tokens and "
        f"{decode.weight:g} decode steps of {decode.num_sequences:,} sequences with "
        f"{decode.context:,} tokens each; no more than 1 / slowest stage of these a second.",
        f"GiB are weights and the KV of {kv_tokens:,} tokens on the fullest device, of "
        f"{units.gibibytes(report.budget_bytes)} allowed. Solved in "
        f"{units.seconds(report.solve_s)}.",
    )
