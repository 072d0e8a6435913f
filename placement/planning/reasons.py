"""Which constraint binds in the plan that an input leads to, and what would change if it didn't."""

from collections.abc import Callable, Sequence
from statistics import fmean

from fabric.core.errors import ConfigError
from placement.config.changes import changed
from placement.config.schema import PlanInput
from placement.groups import Group
from placement.planning.explain import Case, explain_models
from placement.planning.plan import run_search
from placement.planning.plan_yaml import group_name
from placement.planning.problem import Planning, planning_of
from placement.planning.report import ExplainReport, WhatIf

Progress = Callable[[str, float], None]


def explain_plan(
    inputs: PlanInput,
    *,
    model: str | None = None,
    group: str | None = None,
    changes: Sequence[tuple[str, float]] = (),
    progress: Progress,
) -> ExplainReport:
    """Find a placement, and say for which reasons requests miss with it.

    Args:
        inputs: What the user says.
        model: Only this model.
        group: Only models of this group, whose requests it is then about.
        changes: (quantity, value) of what-ifs, each by itself, as :func:`changed` takes them.
        progress: Told what is being done.

    Raises:
        ConfigError: There is no such model, group or change.
    """
    planning = planning_of(inputs)
    names = planning.situation.names
    if model is not None and model not in names:
        raise ConfigError(f"--model {model}: there is none; allowed: {', '.join(names)}")
    progress("searching", 0.0)
    groups = _search(planning)
    problem = planning.problem
    bindings = explain_models(Case(names, groups, problem.requests, problem.times))
    chosen = {model} if model is not None else _hosted(names, groups, group)
    before = fmean(planning.held_out_attainment(groups))
    what_ifs = []
    for number, (quantity, value) in enumerate(changes):
        progress(f"what if {quantity}={value:g}", (1 + number) / (1 + len(changes)))
        what_ifs.append(_what_if(inputs, quantity, value, before))
    kept = tuple(binding for binding in bindings if binding.subject in chosen)
    return ExplainReport(kept, tuple(what_ifs))


def _search(planning: Planning) -> Sequence[Group]:
    return run_search(planning, lambda what, done: None).groups


def _hosted(names: Sequence[str], groups: Sequence[Group], group: str | None) -> set[str]:
    """The models of one group, or all."""
    if group is None:
        return set(names)
    known = [group_name(number) for number in range(len(groups))]
    if group not in known:
        raise ConfigError(f"--group {group}: there is none; the plan has {', '.join(known)}")
    return {names[model] for model in groups[known.index(group)].models}


def _what_if(inputs: PlanInput, quantity: str, value: float, before: float) -> WhatIf:
    planning = planning_of(changed(inputs, quantity, value))
    attainment = fmean(planning.held_out_attainment(_search(planning)))
    return WhatIf(f"{quantity} = {value:g}", attainment, before)
