"""Which device group a request goes to; pure, so that the simulator runs the same code."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class GroupLoad:
    """What a router has dispatched to a group and not yet seen end."""

    group: str
    num_requests: int
    num_tokens: int


class RoutingPolicy(Protocol):
    """Picks one of the groups that can take a request."""

    def choose(self, candidates: Sequence[GroupLoad]) -> str:
        """The chosen group's name; ``candidates`` are not empty, in a stable order."""
        ...


class LeastLoaded:
    """The group with the fewest dispatched tokens; the first of equals."""

    def choose(self, candidates: Sequence[GroupLoad]) -> str:
        """The least loaded group's name."""
        return min(candidates, key=_load).group


class RoundRobin:
    """Each group in turn."""

    def __init__(self) -> None:
        self._turn = -1

    def choose(self, candidates: Sequence[GroupLoad]) -> str:
        """The next group's name."""
        self._turn += 1
        return candidates[self._turn % len(candidates)].group


class PowerOfTwoChoices:
    """The less loaded of two groups drawn at random.

    Routers that don't know of each other's requests don't all rush to the same group.

    Source: Mitzenmacher, The Power of Two Choices in Randomized Load Balancing (TPDS 2001).
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def choose(self, candidates: Sequence[GroupLoad]) -> str:
        """The chosen group's name."""
        drawn = self._random.sample(candidates, min(2, len(candidates)))
        return min(drawn, key=_load).group


def _load(candidate: GroupLoad) -> tuple[int, int]:
    return candidate.num_tokens, candidate.num_requests
