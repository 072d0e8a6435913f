"""The inverse questions: fewest devices, highest rate, tightest objectives for an attainment."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from fabric.core.errors import ConfigError
from placement.search.problem import Problem
from placement.search.search import SearchResult, SearchSettings, search

# Each point of a bisection is searched less than a single problem would be.
POINT_SETTINGS = SearchSettings(max_work=50_000_000)
MAX_MIXES = 200


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """The number that was asked for, the placement that attains it, and all points looked at.

    ``points`` are (number, training attainment), ascending.
    """

    number: float
    result: SearchResult
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Mix:
    """Devices of each type, what they cost an hour, and the placement on them."""

    num_devices: tuple[int, ...]
    price_per_hour: float
    result: SearchResult


class _Points:
    """Placements found at each number, searched once."""

    def __init__(self, make: Callable[[float], Problem], settings: SearchSettings) -> None:
        self._make = make
        self._settings = settings
        self._found: dict[float, SearchResult] = {}

    def at(self, number: float) -> SearchResult:
        if number not in self._found:
            self._found[number] = search(self._make(number), self._settings)
        return self._found[number]

    def answer(self, number: float) -> Answer:
        points = sorted((at, found.attainment) for at, found in self._found.items())
        return Answer(number, self.at(number), tuple(points))


def fewest_devices(
    problem: Problem,
    target: float,
    max_devices: int = 512,
    settings: SearchSettings = POINT_SETTINGS,
) -> Answer | None:
    """The fewest devices of one type on which so large a share of requests meets its objective.

    The number of devices is doubled until it suffices, and then bisected.

    Args:
        problem: One type of device; how many there are doesn't matter.
        target: The share of requests, above 0 and up to 1.
        max_devices: Where to give up.
        settings: Of the search at each number.

    Returns:
        None if ``max_devices`` don't suffice.

    Raises:
        ConfigError: There are several types, or the target isn't a share.
    """
    check_target(target)
    if len(problem.num_devices) != 1:
        raise ConfigError("fewest_devices needs devices of one type; cheapest_mix knows several")
    points = _Points(lambda number: replace(problem, num_devices=(round(number),)), settings)
    enough = 1
    while points.at(enough).attainment < target:
        if enough >= max_devices:
            return None
        enough = min(2 * enough, max_devices)
    short = enough // 2
    while enough - short > 1:
        middle = (enough + short) // 2
        if points.at(middle).attainment >= target:
            enough = middle
        else:
            short = middle
    return points.answer(enough)


def cheapest_mix(
    problem: Problem,
    prices_per_hour: Sequence[float],
    target: float,
    settings: SearchSettings = POINT_SETTINGS,
) -> Mix | None:
    """The cheapest devices, of several types, that attain the target.

    Mixes are tried from the cheapest on, but those that have no more of any type than one that
    fell short. Where there are many mixes, counts are multiples of a step.

    Args:
        problem: ``num_devices`` is how many of each type may be used at most.
        prices_per_hour: Of a device of each type.
        target: The share of requests, above 0 and up to 1.
        settings: Of the search of each mix.

    Returns:
        None if all devices together don't suffice.

    Raises:
        ConfigError: Prices are too few or too many, or the target isn't a share.
    """
    check_target(target)
    if len(prices_per_hour) != len(problem.num_devices):
        raise ConfigError(
            f"{len(prices_per_hour)} prices for {len(problem.num_devices)} types of devices"
        )
    prices = np.array(prices_per_hour)
    mixes = sorted(mixes_of(problem.num_devices), key=lambda mix: (float(prices @ mix), mix))
    short: list[tuple[int, ...]] = []
    for mix in mixes:
        if any(all(a <= b for a, b in zip(mix, other, strict=True)) for other in short):
            continue
        result = search(replace(problem, num_devices=mix), settings)
        if result.attainment >= target:
            return Mix(mix, float(prices @ mix), result)
        short.append(mix)
    return None


def mixes_of(most: Sequence[int]) -> list[tuple[int, ...]]:
    """Every mix of devices but none at all, in steps that keep them few."""
    step = 1
    while math.prod(count // step + 1 for count in most) > MAX_MIXES:
        step += 1
    choices = [sorted({*range(0, count + 1, step), count}) for count in most]
    return [mix for mix in product(*choices) if any(mix)]


def highest_rate(
    problem: Problem,
    target: float,
    tolerance: float = 0.02,
    settings: SearchSettings = POINT_SETTINGS,
) -> Answer | None:
    """How many times faster the requests may come: the largest factor that attains the target.

    Args:
        problem: Its arrivals are moved together or apart in time, so burstiness stays.
        target: The share of requests, above 0 and up to 1.
        tolerance: How exact the factor is, relatively.
        settings: Of the search at each factor.

    Returns:
        None if not even a thousandth of the rate attains it.
    """
    check_target(target)
    points = _Points(lambda factor: with_rate(problem, factor), settings)
    found = _last_good(lambda factor: points.at(factor).attainment >= target, tolerance)
    return None if found is None else points.answer(found)


def tightest_objectives(
    problem: Problem,
    target: float,
    tolerance: float = 0.02,
    settings: SearchSettings = POINT_SETTINGS,
) -> Answer | None:
    """How many times shorter the objectives may be: ``number`` is the factor on ``slo_s``.

    Args:
        problem: Its objectives are all scaled alike.
        target: The share of requests, above 0 and up to 1.
        tolerance: How exact the factor is, relatively.
        settings: Of the search at each factor.

    Returns:
        None if not even a thousand times as long objectives attain it.
    """
    check_target(target)
    points = _Points(lambda factor: with_objectives(problem, factor), settings)
    found = _last_good(lambda inverse: points.at(1.0 / inverse).attainment >= target, tolerance)
    return None if found is None else points.answer(1.0 / found)


def with_rate(problem: Problem, factor: float) -> Problem:
    """The problem with requests ``factor`` times as fast."""
    requests = replace(problem.requests, arrivals_s=problem.requests.arrivals_s / factor)
    return replace(problem, requests=requests)


def with_objectives(problem: Problem, factor: float) -> Problem:
    """The problem with objectives ``factor`` times as long."""
    slo_s = (problem.requests.slo_s * factor).astype(np.float32)
    return replace(problem, requests=replace(problem.requests, slo_s=slo_s))


def _last_good(is_good: Callable[[float], bool], tolerance: float) -> float | None:
    """The largest factor from 0.001 to 1000 that is good, if all smaller ones are."""
    good = 1.0
    while not is_good(good):
        good /= 2.0
        if good < 1e-3:
            return None
    bad = 2.0 * good
    while bad <= 1e3 and is_good(bad):
        good, bad = bad, 2.0 * bad
    while bad / good > 1.0 + tolerance and bad <= 1e3:
        middle = math.sqrt(good * bad)
        if is_good(middle):
            good = middle
        else:
            bad = middle
    return good


def check_target(target: float) -> None:
    """Raise ConfigError unless it is a share that can be asked for."""
    if not 0.0 < target <= 1.0:
        raise ConfigError(f"target is {target}; above 0 and up to 1 is allowed")
