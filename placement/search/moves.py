"""Placements near another: one or two groups host other models."""

import random
from collections.abc import Sequence

from placement.groups import Group
from placement.search.problem import Groups, Problem

MISSED_SHARE = 0.7
NUM_TRIES = 10


class Moves:
    """Proposes neighbours: insert (evicting what is in the way), remove, move and swap.

    Models that miss more are inserted more often.
    """

    def __init__(self, problem: Problem, rng: random.Random) -> None:
        self._problem = problem
        self._rng = rng
        # Each as often as it is listed.
        inserts, moves, swaps = [self._insert] * 3, [self._move] * 2, [self._swap] * 2
        self._kinds = (*inserts, *moves, *swaps, self._remove)

    def propose(self, groups: Groups, missed: Sequence[int], number: int) -> list[Groups]:
        """Up to so many different neighbours.

        Args:
            groups: Whose neighbours.
            missed: Requests of each model that missed their objective.
            number: How many to find.
        """
        weights = [count + 1.0 for count in missed]
        wanted = self._rng.choices(range(len(weights)), weights, k=NUM_TRIES * number)
        found: dict[Groups, None] = {}
        for model in wanted:
            if len(found) == number:
                break
            if self._rng.random() > MISSED_SHARE:
                model = self._rng.randrange(len(weights))
            changed = self._rng.choice(self._kinds)(groups, model)
            if changed:
                found[replaced(groups, changed)] = None
        found.pop(groups, None)
        return list(found)

    def _insert(self, groups: Groups, model: int) -> dict[int, list[int]] | None:
        index = self._rng.randrange(len(groups))
        group = groups[index]
        if model in group.models:
            return None
        kept, _ = self._squeeze(group, model)
        return {index: kept} if kept else None

    def _remove(self, groups: Groups, model: int) -> dict[int, list[int]] | None:
        index = self._rng.randrange(len(groups))
        models = list(groups[index].models)
        if not models:
            return None
        models.pop(self._rng.randrange(len(models)))
        return {index: models}

    def _move(self, groups: Groups, model: int) -> dict[int, list[int]] | None:
        source, target = self._two(groups)
        if source == target or not groups[source].models:
            return None
        moved = self._rng.choice(groups[source].models)
        if moved in groups[target].models:
            return None
        there, evicted = self._squeeze(groups[target], moved)
        if not there:
            return None
        here = [other for other in groups[source].models if other != moved]
        for other in evicted:
            if other not in here and self._problem.fits(groups[source].config, [*here, other]):
                here.append(other)
        return {source: here, target: there}

    def _swap(self, groups: Groups, model: int) -> dict[int, list[int]] | None:
        first, second = self._two(groups)
        one, other = groups[first], groups[second]
        if first == second or not one.models or not other.models:
            return None
        given, taken = self._rng.choice(one.models), self._rng.choice(other.models)
        if given in other.models or taken in one.models:
            return None
        ones = [taken if model == given else model for model in one.models]
        others = [given if model == taken else model for model in other.models]
        fits = self._problem.fits
        if not (fits(one.config, ones) and fits(other.config, others)):
            return None
        return {first: ones, second: others}

    def _two(self, groups: Groups) -> tuple[int, int]:
        return self._rng.randrange(len(groups)), self._rng.randrange(len(groups))

    def _squeeze(self, group: Group, model: int) -> tuple[list[int], list[int]]:
        """The group's models with one more, without those that must leave; and these."""
        kept = list(group.models)
        self._rng.shuffle(kept)
        evicted: list[int] = []
        while not self._problem.fits(group.config, [*kept, model]):
            if not kept:
                return [], evicted
            evicted.append(kept.pop())
        return [*kept, model], evicted


def replaced(groups: Groups, changed: dict[int, list[int]]) -> Groups:
    """The groups, some with other models, in order."""
    return tuple(
        sorted(
            Group(group.config, tuple(sorted(changed[index]))) if index in changed else group
            for index, group in enumerate(groups)
        )
    )
