"""The router's choices on a virtual clock: the real routing, and what it is told."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

from fabric.core.errors import ConfigError, Overloaded
from fabric.core.request import GenerationRequest, LoadReport, Objectives
from fabric.router.policy import new_policy
from fabric.router.routing import ReadyGroup, Route, Routing
from fabric.router.work import DispatchedWork, WorkEntry
from fabric.scheduler.output import RequestEnd
from placement.simulator.simulated import RouterModel


class Dispatched:
    """A request that a group has: its route, and how its tokens are counted."""

    __slots__ = ("_counted", "dispatched_s", "request", "route", "work")

    def __init__(
        self,
        request: GenerationRequest,
        route: Route,
        counted: AbstractContextManager[WorkEntry],
        now: float,
    ) -> None:
        self.request = request
        self.route = route
        self.dispatched_s = now
        self._counted = counted
        self.work = counted.__enter__()

    def end(self) -> None:
        """It is no work of its group's any more."""
        self._counted.__exit__(None, None, None)


class SimulatedRouter:
    """Chooses groups as a router would that hears from them as often, and learns as it does."""

    def __init__(
        self, groups: Sequence[ReadyGroup], names: Sequence[str], router: RouterModel, seed: int
    ) -> None:
        objectives = objectives_of(router, names)
        self._work = DispatchedWork()
        self._routing = Routing(
            new_policy(router.routing, seed), self._work, objectives, router.max_waiting_cold
        )
        self._groups = {group.name: group for group in groups}
        self._hosts: dict[str, list[str]] = {name: [] for name in names}
        for group in sorted(groups, key=lambda group: group.name):
            for model in group.models:
                self._hosts.setdefault(model.card.model, []).append(group.name)
        self._has_choice = any(len(hosts) > 1 for hosts in self._hosts.values())
        self._may_refuse = any(given.refuse_if_late for given in objectives.values())

    @property
    def is_plain(self) -> bool:
        """Whether each model has one group, which all of its requests go to."""
        return not (self._has_choice or self._may_refuse)

    def only_group(self, model: str) -> str:
        """The group of a model, if that is plain."""
        return self._hosts[model][0]

    def note_report(self, group: str, load: LoadReport) -> None:
        """A group has told its load."""
        self._groups[group] = replace(self._groups[group], load=load)

    def dispatch(self, request: GenerationRequest, now: float) -> Dispatched | None:
        """Choose a request's group; None: it is refused."""
        groups = [self._groups[name] for name in self._hosts[request.model]]
        demand = self._routing.demand(request, len(groups))
        objectives = self._routing.objectives(request)
        try:
            route = self._routing.route(demand, objectives, groups, now)
        except Overloaded:
            return None
        if route.miss is not None and objectives.refuse_if_late:
            return None
        counted = self._work.entry(route.group, demand, route.is_cold)
        self._routing.note_dispatched(route)
        return Dispatched(request, route, counted, now)

    def note_first_token(self, dispatched: Dispatched, now: float) -> None:
        """A request's first token has come."""
        self._routing.note_first_token(dispatched.route, now - dispatched.dispatched_s, now)

    def note_end(self, dispatched: Dispatched, end: RequestEnd | None, now: float) -> None:
        """A request has ended; None: its group refused it."""
        dispatched.end()
        if end is None or end.error is not None:
            return
        num_tokens = end.usage.completion_tokens
        self._routing.note_output(dispatched.request, num_tokens)
        if num_tokens > 1:
            tpot_s = end.timing.decode_s / (num_tokens - 1)
            self._routing.note_pace(dispatched.route, tpot_s, now)


def objectives_of(router: RouterModel, names: Sequence[str]) -> dict[str, Objectives]:
    """Each model's objectives, as the router has them.

    Raises:
        ConfigError: There are not as many objectives as names, and not none.
    """
    if router.objectives and len(router.objectives) != len(names):
        raise ConfigError(
            f"objectives are {len(router.objectives)}; none, or one for each of {len(names)} models"
        )
    refuses = router.refuse_if_late
    return {
        name: replace(given, refuse_if_late=given.refuse_if_late or refuses)
        for name, given in zip(names, router.objectives, strict=False)
    }
