"""Which device group a request goes to; pure, so that the simulator runs the same code."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from fabric.router.forecast import Forecast

RoutingName = Literal["predicted", "least_loaded", "power_of_two", "round_robin"]

# Predictions that differ by less are not worth leaving a warm prefix cache for.
TIE_SHARE = 0.03
TIE_S = 0.001


@dataclass(frozen=True, slots=True)
class Candidate:
    """A group that can take a request, and what is known of it.

    This router has ``num_requests`` there, with ``num_tokens`` to compute; ``num_prefix_blocks``
    of the prompt went there lately. ``forecast`` is None where nothing was measured.
    """

    group: str
    num_requests: int
    num_tokens: int
    num_prefix_blocks: int = 0
    forecast: Forecast | None = None


class RoutingPolicy(Protocol):
    """Picks one of the groups that can take a request."""

    def choose(self, candidates: Sequence[Candidate]) -> Candidate:
        """The chosen one; ``candidates`` are not empty, in a stable order."""
        ...


class PredictedFinish:
    """The group that is predicted to finish first.

    Among those that finish at about the same time, the one that has seen the longest prefix of
    the prompt, and then the least loaded one. If a candidate can't be predicted, the least loaded
    group: a number can't be compared with none.
    """

    def choose(self, candidates: Sequence[Candidate]) -> Candidate:
        """The chosen one."""
        if len(candidates) == 1:
            return candidates[0]
        ends_s = [it.forecast.e2e_s for it in candidates if it.forecast is not None]
        if len(ends_s) < len(candidates):
            return min(candidates, key=_load)
        first_s = min(ends_s)
        latest_s = first_s + max(TIE_S, TIE_SHARE * first_s)
        near = [it for it, end_s in zip(candidates, ends_s, strict=True) if end_s <= latest_s]
        return min(near, key=lambda it: (-it.num_prefix_blocks, *_load(it)))


class LeastLoaded:
    """The group with the fewest dispatched tokens; the first of equals."""

    def choose(self, candidates: Sequence[Candidate]) -> Candidate:
        """The least loaded one."""
        return min(candidates, key=_load)


class RoundRobin:
    """Each group in turn."""

    def __init__(self) -> None:
        self._turn = -1

    def choose(self, candidates: Sequence[Candidate]) -> Candidate:
        """The next one."""
        self._turn += 1
        return candidates[self._turn % len(candidates)]


class PowerOfTwoChoices:
    """The less loaded of two groups drawn at random.

    Routers that don't know of each other's requests don't all rush to the same group.

    Source: Mitzenmacher, The Power of Two Choices in Randomized Load Balancing (TPDS 2001).
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def choose(self, candidates: Sequence[Candidate]) -> Candidate:
        """The chosen one."""
        drawn = self._random.sample(candidates, min(2, len(candidates)))
        return min(drawn, key=_load)


def new_policy(name: RoutingName, seed: int) -> RoutingPolicy:
    """The policy of that name; the seed is for one that draws."""
    match name:
        case "predicted":
            return PredictedFinish()
        case "least_loaded":
            return LeastLoaded()
        case "power_of_two":
            return PowerOfTwoChoices(seed)
        case "round_robin":
            return RoundRobin()


def _load(candidate: Candidate) -> tuple[int, int]:
    return candidate.num_tokens, candidate.num_requests
