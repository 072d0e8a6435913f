"""From what a user asks for to a placement, what it would do, and the file that runs it."""

from collections.abc import Callable, Sequence

from placement.config.schema import PlanInput
from placement.groups import Group, Placement
from placement.planning.fewest import fewest_devices
from placement.planning.plan_yaml import SERVED_DEVICES, plan_yaml
from placement.planning.problem import Planning, planning_of
from placement.planning.report import PlanReport, SearchReport
from placement.planning.serving import attained, memory_bytes, serve
from placement.planning.statistics import interval
from placement.search.reshape import trimmed
from placement.search.search import Progress, SearchResult, SearchSettings, search
from placement.workload.trace import Trace
from placement.workload.windows import cut

Report = Callable[[str, float], None]
# Placements of the search that are judged by iterations, by at most so many requests of each
# workload: enough to tell, and few enough not to wait for.
NUM_FINALISTS = 3
JUDGED_REQUESTS = 400


def make_plan(inputs: PlanInput, *, is_fewest: bool = False, progress: Report) -> PlanReport:
    """Search a placement, judge the best few by iterations, and report on the best.

    Args:
        inputs: What the user says.
        is_fewest: Whether to find the fewest devices for the target too.
        progress: Told what is being done, and how much of it is done.

    Raises:
        ConfigError: Something that the input names isn't known, can't be read, or fits nowhere.
    """
    planning = planning_of(inputs)
    found = run_search(planning, progress)
    groups = _judged(planning, found, progress)
    placement = planning.placement(groups)
    serving = serve(planning.situation, placement, _part(planning.training))
    held_out = [
        attained(planning.situation, placement, _part(trace)) for trace in planning.held_out
    ]
    return PlanReport(
        search=SearchReport(
            attainment=found.attainment,
            held_out=interval(planning.held_out_attainment(groups)),
            num_simulations=found.num_simulations,
            seconds=found.seconds,
        ),
        serving=serving,
        held_out=interval(held_out),
        target=inputs.target,
        fewest=fewest_devices(planning, progress) if is_fewest else None,
        plan_yaml=_yaml(planning, placement),
        warnings=_warnings(planning, placement),
    )


def best_groups(planning: Planning) -> Sequence[Group]:
    """The groups that :func:`make_plan` decides on."""
    found = run_search(planning, _ignore)
    return _judged(planning, found, _ignore)


def _ignore(what: str, done: float) -> None:
    pass


def run_search(planning: Planning, progress: Report) -> SearchResult:
    """The search that an input asks for."""
    asked = planning.situation.inputs.search

    def tell(state: Progress) -> None:
        progress(f"searching, {max(0.0, state.value):.1%} attained", state.share)

    settings = SearchSettings(max_seconds=asked.budget_s, seed=asked.seed, beam=asked.beam)
    return search(planning.problem, settings, report=tell)


def _judged(planning: Planning, found: SearchResult, progress: Report) -> Sequence[Group]:
    """The groups that do best iteration by iteration, of the best that the search has found."""
    finalists = [found.groups]
    for standing in found.alternatives:
        groups = trimmed(standing.groups)
        if groups not in finalists and len(finalists) < NUM_FINALISTS:
            finalists.append(groups)
    if len(finalists) == 1:
        return finalists[0]
    shares, part = list[float](), _part(planning.training)
    for number, groups in enumerate(finalists):
        progress("judging by iterations", number / len(finalists))
        shares.append(attained(planning.situation, planning.placement(groups), part))
    # The search's own order decides between equal ones.
    return finalists[shares.index(max(shares))]


def _part(trace: Trace) -> Trace:
    """The first requests of a trace, as many as iterations can judge soon."""
    if len(trace) <= JUDGED_REQUESTS:
        return trace
    return cut(trace, 0.0, float(trace.arrivals_s[JUDGED_REQUESTS]))


def _yaml(planning: Planning, placement: Placement) -> str:
    situation = planning.situation
    return plan_yaml(
        situation.inputs,
        placement,
        situation.objectives,
        memory_bytes(situation, placement),
        [model.demands.max_model_len for model in situation.models],
    )


def _warnings(planning: Planning, placement: Placement) -> tuple[str, ...]:
    situation, found = planning.situation, list[str]()
    hosted = {model for group in placement.groups for model in group.models}
    for number, name in enumerate(situation.names):
        if number not in hosted:
            found.append(f"{name} is in no group: it would bring down the attainment of others")
    if planning.num_cut:
        found.append(
            f"{planning.num_cut} of {len(planning.training)} requests are longer than their "
            "model's max_model_len, and were cut to it"
        )
    others = {kind.name for kind in situation.inventory.types} - set(SERVED_DEVICES)
    if others:
        found.append(
            f"device groups run on {', '.join(SERVED_DEVICES)} so far: the plan for "
            f"{', '.join(sorted(others))} is a prediction"
        )
    return tuple(found)
