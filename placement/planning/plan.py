"""From what a user asks for to a placement, what it would do, and the file that runs it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from placement.config.schema import PlanInput
from placement.groups import Group, Placement
from placement.planning.inverse import fewest_devices, headroom
from placement.planning.plan_yaml import SERVED_DEVICES, plan_yaml, unserved_types
from placement.planning.problem import Planning, planning_of
from placement.planning.report import Interval, PlanReport, SearchReport
from placement.planning.serving import attained, memory_bytes, serve
from placement.planning.statistics import interval
from placement.search.reshape import trimmed
from placement.search.search import Progress, SearchResult, SearchSettings, search
from placement.workload.trace import Trace
from placement.workload.windows import cut

Report = Callable[[str, float], None]
# A first answer is simulated by so many requests: a few hundred iterations of each group.
FIRST_REQUESTS = 250
# A thorough one judges so many of the search's placements, by at most so many requests each.
NUM_FINALISTS = 4
JUDGED_REQUESTS = 3000


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked beside a placement.

    ``thorough``: iterations judge the best few of the search's placements, and the best of these
    by workloads of other seeds; else one is simulated for a short while. ``fewest``: how few
    devices would do. ``headroom``: how much faster requests might come, and how much sooner
    they might have to end.
    """

    thorough: bool = False
    fewest: bool = False
    headroom: bool = False


def make_plan(inputs: PlanInput, asked: Asked, progress: Report) -> PlanReport:
    """Search a placement and report what it would do.

    Args:
        inputs: What the user says.
        asked: What more is wanted.
        progress: Told what is being done, and how much of it is done.

    Raises:
        ConfigError: Something that the input names isn't known, can't be read, or fits nowhere.
    """
    planning = planning_of(inputs)
    found = run_search(planning, progress)
    groups = _judged(planning, found, progress) if asked.thorough else found.groups
    placement = planning.placement(groups)
    num_requests = JUDGED_REQUESTS if asked.thorough else FIRST_REQUESTS
    serving = serve(planning.situation, placement, _part(planning.training, num_requests))
    return PlanReport(
        search=SearchReport(
            attainment=found.attainment,
            held_out=interval(planning.held_out_attainment(groups)),
            num_simulations=found.num_simulations,
            seconds=found.seconds,
        ),
        serving=serving,
        held_out=_held_out(planning, placement, progress) if asked.thorough else None,
        target=inputs.target,
        fewest=fewest_devices(planning, progress) if asked.fewest else None,
        headroom=headroom(planning, progress) if asked.headroom else None,
        plan_yaml=_yaml(planning, placement),
        warnings=_warnings(planning, placement),
    )


def run_search(planning: Planning, progress: Report, *, hosts_all: bool = True) -> SearchResult:
    """The search that an input asks for.

    Args:
        planning: What to place.
        progress: Told how far the search is.
        hosts_all: Whether no model may be left out for the sake of others; policies that ours is
            compared with leave some out.
    """
    wished = planning.situation.inputs.search

    def tell(state: Progress) -> None:
        progress(f"searching, {max(0.0, state.value):.1%} attained", state.share)

    settings = SearchSettings(
        max_seconds=wished.budget_s, seed=wished.seed, beam=wished.beam, hosts_all=hosts_all
    )
    return search(planning.problem, settings, report=tell)


def _judged(planning: Planning, found: SearchResult, progress: Report) -> Sequence[Group]:
    """The groups that do best iteration by iteration, of the best that the search has found."""
    finalists = [found.groups]
    for standing in found.alternatives:
        groups = trimmed(standing.groups)
        if groups not in finalists and len(finalists) < NUM_FINALISTS:
            finalists.append(groups)
    shares, part = list[float](), _part(planning.training, JUDGED_REQUESTS)
    for number, groups in enumerate(finalists):
        progress("judging by iterations", number / len(finalists))
        shares.append(attained(planning.situation, planning.placement(groups), part))
    # The search's own order decides between equal ones.
    return finalists[shares.index(max(shares))]


def _held_out(planning: Planning, placement: Placement, progress: Report) -> Interval:
    shares = list[float]()
    for number, trace in enumerate(planning.held_out):
        progress("simulating unseen workloads", number / len(planning.held_out))
        part = _part(trace, JUDGED_REQUESTS)
        shares.append(attained(planning.situation, placement, part))
    return interval(shares)


def _part(trace: Trace, num_requests: int) -> Trace:
    """The first requests of a trace."""
    if len(trace) <= num_requests:
        return trace
    return cut(trace, 0.0, float(trace.arrivals_s[num_requests]))


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
            found.append(
                f"{name} is in no group: no placement was found that has room for all models"
            )
    if planning.num_cut:
        found.append(
            f"{planning.num_cut} of {len(planning.training)} requests are longer than their "
            "model's max_model_len, and were cut to it"
        )
    if others := unserved_types(situation.inputs):
        found.append(
            f"device groups run on {', '.join(SERVED_DEVICES)} so far: the plan for "
            f"{', '.join(others)} is a prediction"
        )
    return tuple(found)
