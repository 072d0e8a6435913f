"""Where a request goes, and whether it is let in at all; pure, as the policy is."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fabric.core.errors import Overloaded
from fabric.core.request import GenerationRequest, LoadReport, Objectives, ServedModel
from fabric.core.weights import WeightState
from fabric.router.affinity import PrefixAffinity, prefix_hashes
from fabric.router.experience import Calibration, OutputLengths
from fabric.router.forecast import Demand, Forecast, GroupView, Paces
from fabric.router.objectives import MAX_RETRY_S, Miss, first_miss, has_any, in_force
from fabric.router.policy import Candidate, RoutingPolicy
from fabric.router.prediction import predict
from fabric.router.work import DispatchedWork

RETRY_AFTER_S = 1.0


@dataclass(frozen=True, slots=True)
class ReadyGroup:
    """A group that can take a request: what it serves, and what it last told."""

    name: str
    models: tuple[ServedModel, ...]
    load: LoadReport


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request goes.

    ``is_cold``: its weights are not on that group's device. ``miss`` is an objective that it is
    predicted to miss even there; whoever asked to be refused is to be.
    """

    group: str
    demand: Demand
    forecast: Forecast | None
    is_cold: bool
    miss: Miss | None = None


class Routing:
    """Predicts each group's service of a request, and has the policy choose among the best.

    What it learns, it is told: first tokens, and the lengths of outputs.
    """

    def __init__(
        self,
        policy: RoutingPolicy,
        work: DispatchedWork,
        objectives: Mapping[str, Objectives],
        max_waiting_cold: int,
    ) -> None:
        self._policy = policy
        self._work = work
        self._objectives = dict(objectives)
        self._max_waiting_cold = max_waiting_cold
        self._paces = Paces()
        self._affinity = PrefixAffinity()
        self._lengths = OutputLengths()
        self.calibration = Calibration()
        self.step_calibration = Calibration()

    def objectives(self, request: GenerationRequest) -> Objectives:
        """The request's own, and its model's where it states none."""
        return in_force(request.objectives, self._objectives.get(request.model))

    def set_objectives(self, objectives: Mapping[str, Objectives]) -> None:
        """Go by other objectives of models from now on."""
        self._objectives = dict(objectives)

    def demand(self, request: GenerationRequest, num_groups: int) -> Demand:
        """What a request asks; the prefix only matters where there is a choice."""
        sampling = request.sampling
        expected = request.expected_tokens
        if expected is None:
            expected = round(self._lengths.expected(request.model, request.tenant))
        return Demand(
            request.model,
            len(request.prompt_token_ids),
            max(1, min(expected, sampling.max_tokens)),
            sampling.n,
            prefix_hashes(request) if num_groups > 1 else (),
        )

    def route(
        self, demand: Demand, objectives: Objectives, groups: Iterable[ReadyGroup], now: float
    ) -> Route:
        """Choose one of the groups.

        Groups that are predicted to meet the objectives go before those that miss one.

        Args:
            demand: What the request asks.
            objectives: What is in force for it.
            groups: Those that can take it; at least one.
            now: Seconds, on the clock of the notes.

        Raises:
            Overloaded: Too many requests wait for the model's weights already.
        """
        candidates = []
        cold = set()
        for group in groups:
            view = self._view(group, now)
            candidates.append(self._candidate(demand, view))
            if view.state(demand.model) != WeightState.RESIDENT:
                cold.add(group.name)
        if cold and self._work.num_waiting_cold(demand.model) >= self._max_waiting_cold:
            candidates = self._warm(demand.model, candidates, cold)
        if len(candidates) > 1 and has_any(objectives):
            candidates = _meeting(objectives, candidates) or candidates
        chosen = self._policy.choose(candidates)
        miss = first_miss(objectives, chosen.forecast)
        return Route(chosen.group, demand, chosen.forecast, chosen.group in cold, miss)

    def note_dispatched(self, route: Route) -> None:
        """Remember where a prompt went."""
        self._affinity.note(route.group, route.demand.prefix)

    def note_first_token(self, route: Route, ttft_s: float, now: float) -> None:
        """Compare the time to a request's first token with what was predicted.

        Requests that waited for weights don't count: that time is not the profile's.
        """
        forecast = route.forecast
        if forecast is not None and not route.is_cold and forecast.load_s == 0.0:
            self.calibration.note(route.group, ttft_s, forecast.profiled_ttft_s, now)

    def note_pace(self, route: Route, tpot_s: float, now: float) -> None:
        """Compare the time for each token after a request's first with what was predicted."""
        if route.forecast is not None:
            self.step_calibration.note(route.group, tpot_s, route.forecast.profiled_tpot_s, now)

    def note_output(self, request: GenerationRequest, num_tokens: float) -> None:
        """Learn from the length of a complete output."""
        self._lengths.note(request.model, request.tenant, num_tokens)

    def keep_only(self, groups: set[str]) -> None:
        """Forget what was learned of all groups but these."""
        for learned in (self._paces, self._affinity, self.calibration, self.step_calibration):
            learned.keep_only(groups)

    def _view(self, group: ReadyGroup, now: float) -> GroupView:
        return GroupView(
            group.name,
            self._work.of(group.name),
            group.load,
            self._paces.of(group.name, group.models),
            self.calibration.ratio(group.name, now),
            self.step_calibration.ratio(group.name, now),
        )

    def _candidate(self, demand: Demand, view: GroupView) -> Candidate:
        return Candidate(
            view.group,
            self._work.num_requests(view.group),
            self._work.num_tokens(view.group),
            self._affinity.num_blocks(view.group, demand.prefix),
            predict(demand, view),
        )

    def _warm(self, model: str, candidates: list[Candidate], cold: set[str]) -> list[Candidate]:
        warm = [it for it in candidates if it.group not in cold]
        if warm:
            return warm
        loads_s = [it.forecast.load_s for it in candidates if it.forecast and it.forecast.load_s]
        raise Overloaded(
            f"{self._max_waiting_cold} requests wait for weights of {model!r}, the most allowed",
            min(min(loads_s, default=RETRY_AFTER_S), MAX_RETRY_S),
        )


def _meeting(objectives: Objectives, candidates: list[Candidate]) -> list[Candidate]:
    return [it for it in candidates if first_miss(objectives, it.forecast) is None]
