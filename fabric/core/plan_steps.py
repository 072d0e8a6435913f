"""The way from one placement plan to another: what to start, switch, drain and remove."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

from fabric.core.plan import GroupPlan, PlacementPlan

BytesOfModel = Callable[[str], int | None]
"""Bytes of a model's weights; None: not known."""


class StepKind(StrEnum):
    """What a step does."""

    START = "start"
    SWITCH = "switch"
    DRAIN = "drain"
    REMOVE = "remove"


class StepState(StrEnum):
    """How far a step is."""

    PLANNED = "planned"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class PlanStep:
    """One step: to which group, by its running name ("" for all), and for people.

    ``num_bytes`` of weights are loaded, as far as is known.
    """

    kind: StepKind
    group: str
    description: str
    num_bytes: int = 0


@dataclass(frozen=True, slots=True)
class PlanProgress:
    """How far one step is, by its place among all; ``error`` says why it failed or takes long."""

    step: int
    description: str
    num_bytes: int
    state: StepState
    error: str = ""


def target_plan(old: PlacementPlan, new: PlacementPlan) -> PlacementPlan:
    """The new plan, with the names that its groups will run under.

    A group of the old plan that the new one has too stays as it is. Every other group of the new
    plan is another group, and gets a name that nothing runs under: g0, g0-2, g0-3, ...
    """
    left = list(old.groups)
    kept: dict[str, GroupPlan] = {}
    for group in new.groups:
        if group in left:
            kept[group.name] = left.pop(left.index(group))
    # Names of the plan are left to the groups that have them.
    taken = {group.running_name for group in old.groups}
    names = {group.name for group in new.groups}
    groups = []
    for group in new.groups:
        found = kept.get(group.name)
        if found is None:
            instance = _free_name(group.name, taken | (names - {group.name}))
            found = replace(group, instance=instance)
            taken.add(instance)
        groups.append(found)
    return replace(new, groups=tuple(groups))


def plan_steps(
    old: PlacementPlan, new: PlacementPlan, bytes_of_model: BytesOfModel
) -> tuple[PlanStep, ...]:
    """What is to be done to get from one plan to another; nothing if they have the same groups.

    New groups start beside the old ones; only when all of them serve, requests go to them, and
    the old groups finish what they have. So nothing is lost if a step before that fails.

    Args:
        old: What runs.
        new: What is to run.
        bytes_of_model: The bytes of a model's weights.
    """
    target = target_plan(old, new)
    running = {group.running_name for group in old.groups}
    wanted = {group.running_name for group in target.groups}
    added = [group for group in target.groups if group.running_name not in running]
    gone = [group.running_name for group in old.groups if group.running_name not in wanted]
    if not added and not gone:
        return ()
    steps = [_start(group, bytes_of_model) for group in added]
    names = " and ".join(
        part
        for part in (
            f"to {', '.join(group.running_name for group in added)}" if added else "",
            f"no longer to {', '.join(gone)}" if gone else "",
        )
        if part
    )
    steps.append(PlanStep(StepKind.SWITCH, "", f"send requests {names}"))
    steps += (PlanStep(StepKind.DRAIN, name, f"let {name} finish what it has") for name in gone)
    steps += (PlanStep(StepKind.REMOVE, name, f"remove {name}") for name in gone)
    return tuple(steps)


def _start(group: GroupPlan, bytes_of_model: BytesOfModel) -> PlanStep:
    loaded = [share.model for share in group.models if share.starts != "cold"]
    sizes = {model: bytes_of_model(model) for model in loaded}
    unknown = [model for model, size in sizes.items() if size is None]
    num_bytes = sum(size for size in sizes.values() if size is not None)
    notes = [f"{num_bytes / 1e6:,.1f} MB of weights"]
    if unknown:
        notes.append(f"the size of {', '.join(unknown)} is not known yet")
    num_devices = group.parallel.num_devices
    devices = f"{num_devices} device{'s' if num_devices > 1 else ''}"
    replaced = f" as {group.running_name}" if group.running_name != group.name else ""
    description = (
        f"start {group.name}{replaced} with {', '.join(group.model_ids)} on {devices}: "
        f"{'; '.join(notes)}"
    )
    return PlanStep(StepKind.START, group.running_name, description, num_bytes)


def _free_name(name: str, taken: set[str]) -> str:
    candidate, number = name, 1
    while candidate in taken:
        number += 1
        candidate = f"{name}-{number}"
    return candidate
