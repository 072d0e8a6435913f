"""Has device groups move a model's weights, and watches until they are where they are to be."""

import asyncio
from dataclasses import dataclass

from fabric.core.errors import InternalError, InvalidRequest, ModelNotFound, RequestError
from fabric.core.request import LoadReport, ModelLoad
from fabric.core.status import GroupState, Residence
from fabric.core.weights import WeightState
from fabric.router.catalog import Catalog
from fabric.router.group_link import GroupLink
from fabric.router.steering import named_groups
from fabric.rpc.frames import ResidenceSet, SetResidence

DEFAULT_TIMEOUT_S = 60.0
MAX_TIMEOUT_S = 3600.0
# Reports come several times a second.
_POLL_S = 0.05
_PLACES = (WeightState.COLD, WeightState.HOST, WeightState.RESIDENT)
_HEIGHT = {state: height for height, state in enumerate(WeightState)}


@dataclass(frozen=True, slots=True)
class Wish:
    """Where a model's weights are to be, and whether they are to stay there; None: as they are."""

    model: str
    state: WeightState | None = None
    pinned: bool | None = None

    def is_met(self, told: ResidenceSet) -> bool:
        """Whether there is nothing left to do."""
        return self.state in (None, told.state) and self.pinned in (None, told.pinned)


async def set_residence(
    catalog: Catalog, group: str, wish: Wish, timeout_s: float
) -> tuple[Residence, ...]:
    """Move weights in one group, or in all that host the model; where they are in the end.

    A group that has not got there, within ``timeout_s`` or at all, says why in its ``error``.

    Raises:
        GroupNotFound: There is none of that name.
        ModelNotFound: Nobody serves the model.
        InvalidRequest: Weights can't be asked to be there, or the time is out of bounds.
        RequestError: The named group refuses or doesn't answer, or no group is ready.
    """
    _check(wish, timeout_s)
    names = _hosts(catalog, wish.model, group)
    moves = [_move(name, catalog.link(name), wish, timeout_s) for name in names]
    results = await asyncio.gather(*moves, return_exceptions=True)
    residences = []
    for name, result in zip(names, results, strict=True):
        if isinstance(result, Residence):
            residences.append(result)
        elif group or not isinstance(result, RequestError):
            raise result
        else:
            load = _reported(catalog.link(name).load, wish.model)
            residences.append(Residence(name, load.state, load.pinned, result.message))
    return tuple(residences)


def _check(wish: Wish, timeout_s: float) -> None:
    if wish.state is None and wish.pinned is None:
        raise InvalidRequest.of("state", "is missing, and so is pinned; at least one is needed")
    if wish.state is not None and wish.state not in _PLACES:
        raise InvalidRequest.of("state", f"is {wish.state}; allowed: {', '.join(_PLACES)}")
    if not 0.0 <= timeout_s <= MAX_TIMEOUT_S:
        raise InvalidRequest.of("timeout", f"is {timeout_s:g} s; allowed: 0 to {MAX_TIMEOUT_S:g}")


def _hosts(catalog: Catalog, model: str, group: str) -> tuple[str, ...]:
    names = named_groups(catalog, group)
    if model not in catalog.model_ids:
        raise ModelNotFound(model, catalog.model_ids)
    if group:
        hosted = tuple(served.card.model for served in catalog.link(group).models)
        if hosted and model not in hosted:
            raise InvalidRequest.of(
                "group", f"{group} does not host {model!r}; it hosts: {', '.join(hosted)}"
            )
        return names
    # One that is stalled is asked too, so that it is told of; one that drains is on its way out.
    alive = (GroupState.READY, GroupState.STALLED)
    hosts = tuple(
        name
        for name in names
        if any(served.card.model == model for served in catalog.link(name).models)
        and catalog.group_state(name) in alive
    )
    return hosts or catalog.ready_groups(model)


async def _move(name: str, link: GroupLink, wish: Wish, timeout_s: float) -> Residence:
    now = asyncio.get_running_loop().time
    started_s = now()
    first = highest = told = await _ask(link, wish)
    error = ""
    try:
        async with asyncio.timeout(timeout_s):
            while not (error or wish.is_met(told)):
                before, told = told, await _change(link, wish.model, told)
                if not wish.is_met(told):
                    returned = _return(wish, first, before, told) or _leave(wish, first, told)
                    error = told.error or returned or _fall(wish, highest, told)
                highest = max(highest, told, key=lambda answer: _HEIGHT[answer.state])
    except TimeoutError:
        error = _shortfall(wish, told, timeout_s)
    except RequestError as failure:
        error = failure.message
    return Residence(name, told.state, told.pinned, error, now() - started_s)


async def _ask(link: GroupLink, wish: Wish) -> ResidenceSet:
    answer = await link.ask(
        lambda number: SetResidence(number, wish.model, wish.state, wish.pinned)
    )
    if not isinstance(answer, ResidenceSet):
        raise InternalError(f"{type(answer).__name__} does not answer SetResidence")
    return answer


async def _change(link: GroupLink, model: str, told: ResidenceSet) -> ResidenceSet:
    """Wait until the weights are elsewhere than ``told``, or were meanwhile, or can't go on.

    A report may be older than the last answer: what it says anew is asked for, before it counts.
    """
    seen = link.load
    while True:
        await asyncio.sleep(_POLL_S)
        report, seen_before = link.load, seen
        seen = report
        load = _reported(report, model)
        if report is seen_before or not (load.problem or _has_moved(load, told)):
            continue
        answer = await _ask(link, Wish(model))
        if answer.error or _has_moved(answer, told):
            return answer


def _has_moved(now: ModelLoad | ResidenceSet, told: ResidenceSet) -> bool:
    return now.state is not told.state or now.num_loads > told.num_loads


def _reported(report: LoadReport, model: str) -> ModelLoad:
    unknown = ModelLoad(model, WeightState.COLD)
    return next((load for load in report.models if load.model == model), unknown)


def _return(wish: Wish, first: ResidenceSet, before: ResidenceSet, told: ResidenceSet) -> str:
    """Whether weights that were to leave have left, and are back or on their way; empty if not."""
    if wish.state not in (WeightState.COLD, WeightState.HOST):
        return ""
    was_there = before.state in (WeightState.HOST, WeightState.RESIDENT)
    if was_there and told.state is WeightState.LOADING:
        return "left the device, and comes back for requests that wait for it"
    # A load that is under way when they are to leave is over before that.
    if told.num_loads <= first.num_loads + (first.state is WeightState.LOADING):
        return ""
    if first.state in (WeightState.LOADING, WeightState.RESIDENT):
        return "left the device, and came back for requests that waited for it"
    return "came to the device for requests that waited for it"


def _leave(wish: Wish, first: ResidenceSet, told: ResidenceSet) -> str:
    """Whether weights that were to come have come, and had to go again; empty if not."""
    if wish.state is WeightState.RESIDENT and told.num_loads > first.num_loads:
        return "came to the device, and left it again for other models"
    return ""


def _fall(wish: Wish, highest: ResidenceSet, told: ResidenceSet) -> str:
    """Why weights that were on their way up are not any more; empty if they are."""
    if wish.state is None or _HEIGHT[told.state] >= _HEIGHT[highest.state]:
        return ""
    if _HEIGHT[wish.state] <= _HEIGHT[highest.state]:
        return ""
    return f"went back to {told.state} before it was {wish.state}; see the device group's log"


def _shortfall(wish: Wish, told: ResidenceSet, timeout_s: float) -> str:
    if wish.state in (None, told.state):
        return f"is {'still' if told.pinned else 'not'} pinned after {timeout_s:g} s"
    return f"is still {told.state} after {timeout_s:g} s"
