"""Improves placements step by step: many neighbours by a part of the requests, the best by all."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from placement.search.moves import Moves
from placement.search.problem import Groups, Problem
from placement.search.scoring import Scorer
from placement.simulator.service import KindRequests

SLICE_REQUESTS = 15_000
NUM_NEIGHBOURS = 32
NUM_FINALISTS = 2
MAX_STUCK = 20


@dataclass(frozen=True, slots=True)
class Standing:
    """A placement and its value by all training requests."""

    value: float
    groups: Groups


class Scorers:
    """Scores by all requests, and by consecutive slices of them, which take turns."""

    def __init__(
        self, problem: Problem, num_threads: int | None = None, *, hosts_all: bool = False
    ) -> None:
        requests, times = problem.requests, problem.times
        self.all = Scorer(requests, times, num_threads, hosts_all=hosts_all)
        number = max(1, len(requests.arrivals_s) // SLICE_REQUESTS)
        parts = slices(requests, number) if number > 1 else []
        scorers = [Scorer(part, times, num_threads, hosts_all=hosts_all) for part in parts]
        self.slices = scorers or [self.all]

    @property
    def work(self) -> int:
        """Requests replayed, as :attr:`Scorer.work`, by all of them."""
        return sum(scorer.work for scorer in self._each())

    @property
    def num_simulations(self) -> int:
        """Simulations by all of them."""
        return sum(scorer.num_simulations for scorer in self._each())

    def standing(self, groups: Groups) -> Standing:
        """A placement, in order, with its value."""
        ordered = tuple(sorted(groups))
        return Standing(self.all.value(ordered), ordered)

    def _each(self) -> list[Scorer]:
        return list(dict.fromkeys([self.all, *self.slices]))


def slices(requests: KindRequests, number: int) -> list[KindRequests]:
    """The requests cut in time into equally many."""
    size = len(requests.arrivals_s) // number
    return [
        replace(
            requests,
            arrivals_s=requests.arrivals_s[start : start + size],
            kinds=requests.kinds[start : start + size],
        )
        for start in range(0, size * number, size)
    ]


class Climb:
    """A placement on its way up.

    Each step proposes neighbours, scores them by one slice of the requests, and those that are
    best there by all requests; the best of these is taken if it is better, or, the warmer it is,
    a little worse. All are compared by the same requests, and slices take turns so that no slice's
    peculiarities are learnt.

    Source: Kirkpatrick, Gelatt and Vecchi, Optimization by simulated annealing (Science, 1983).
    """

    def __init__(
        self, problem: Problem, scorers: Scorers, start: Standing, rng: random.Random
    ) -> None:
        self._scorers = scorers
        self._rng = rng
        self._moves = Moves(problem, rng)
        self._turn = 0
        self._num_stuck = 0
        self.best = self._here = start
        self._missed = scorers.all.num_missed(start.groups)

    @property
    def is_over(self) -> bool:
        """Whether nothing is missed where it stands, or there are no neighbours."""
        return self._num_stuck >= MAX_STUCK or not any(self._missed)

    def step(self, temperature: float = 0.0) -> None:
        """Look at neighbours once; a placement that is ``temperature`` worse is taken by 1/e."""
        neighbours = self._moves.propose(self._here.groups, self._missed, NUM_NEIGHBOURS)
        self._num_stuck = 0 if neighbours else self._num_stuck + 1
        finalists = self._finalists(neighbours, temperature)
        if not finalists:
            return
        values = self._scorers.all.values(finalists).tolist()
        found = Standing(*max(zip(values, finalists, strict=True)))
        loss = -temperature * math.log(1.0 - self._rng.random())
        if found.value <= self._here.value - loss:
            return
        self._here = found
        self._missed = self._scorers.all.num_missed(found.groups)
        if found.value > self.best.value:
            self.best = found

    def _finalists(self, neighbours: Sequence[Groups], temperature: float) -> list[Groups]:
        slices = self._scorers.slices
        if len(slices) == 1 or not neighbours:
            return list(neighbours)
        scorer = slices[self._turn % len(slices)]
        self._turn += 1
        here, *values = scorer.values([self._here.groups, *neighbours]).tolist()
        ranked = sorted(zip(values, neighbours, strict=True), reverse=True)
        return [groups for value, groups in ranked[:NUM_FINALISTS] if value > here - temperature]
