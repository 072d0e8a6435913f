"""The other way round: how few devices, how high a rate, how tight objectives."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean

from placement.groups import Group
from placement.planning.problem import Planning
from placement.planning.report import Fewest, Headroom
from placement.search.inverse import (
    POINT_SETTINGS,
    Answer,
    cheapest_mix,
    highest_rate,
    tightest_objectives,
)
from placement.search.inverse import fewest_devices as fewest_of_one_type
from placement.search.search import MAX_WORK, SearchSettings, suitable_work

Progress = Callable[[str, float], None]
# How many times the devices of the input may be asked for.
MOST_MORE = 8


def fewest_devices(planning: Planning, progress: Progress) -> Fewest:
    """The devices that are enough for the target: the fewest, or of several types the cheapest.

    Of one type there may turn out to be more than the input has; of several, no more.
    """
    progress("looking for fewer devices", 0.0)
    situation, problem = planning.situation, planning.problem
    types, counts = situation.inventory.types, situation.inventory.counts
    target = situation.inputs.target
    if len(types) == 1:
        most = MOST_MORE * counts[0]
        found = fewest_of_one_type(problem, target, most, _settings(planning))
        if found is None:
            return Fewest(target, None, 0.0, 0.0)
        number = round(found.number)
        price = number * types[0].price_per_hour
        held_out = _held_out(planning, found.result.groups)
        return Fewest(target, ((types[0].name, number),), price, held_out)
    prices = [kind.price_per_hour for kind in types]
    mix = cheapest_mix(problem, prices, target, _settings(planning))
    if mix is None:
        return Fewest(target, None, 0.0, 0.0)
    names = [kind.name for kind in types]
    taken = tuple((n, count) for n, count in zip(names, mix.num_devices, strict=True) if count)
    return Fewest(target, taken, mix.price_per_hour, _held_out(planning, mix.result.groups))


def headroom(planning: Planning, progress: Progress) -> Headroom:
    """By how much the rate may grow, or the objectives shrink, until the target is missed."""
    problem, target = planning.problem, planning.situation.inputs.target
    settings = _settings(planning)
    progress("looking for the highest rate", 0.0)
    rate = highest_rate(problem, target, settings=settings)
    progress("looking for the tightest objectives", 0.5)
    slo = tightest_objectives(problem, target, settings=settings)
    return Headroom(target, _number(rate), _number(slo))


def _settings(planning: Planning) -> SearchSettings:
    """Each of many searches gets no more than one alone would."""
    work = min(suitable_work(planning.problem), POINT_SETTINGS.max_work or MAX_WORK)
    seed = planning.situation.inputs.search.seed
    return replace(POINT_SETTINGS, max_work=work, seed=seed, hosts_all=True)


def _number(answer: Answer | None) -> float | None:
    return None if answer is None else answer.number


def _held_out(planning: Planning, groups: Sequence[Group]) -> float:
    return fmean(planning.held_out_attainment(groups))
