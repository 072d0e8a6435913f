"""Fills device groups with models, one replica for each simulation."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from placement.groups import Group
from placement.search.problem import Groups, Problem
from placement.search.scoring import Scorer
from placement.simulator.request_level import Score


@dataclass(frozen=True, slots=True)
class Vacancy:
    """Groups that have room, and the models that may fill them."""

    groups: Groups
    models: tuple[int, ...]


def empty_groups(configs: Sequence[int]) -> Groups:
    """Groups of these configurations that host nothing."""
    return tuple(Group(config, ()) for config in sorted(configs))


def fill_by_misses(problem: Problem, scorer: Scorer, vacancies: Sequence[Vacancy]) -> list[Groups]:
    """Give the model that misses most to the group that serves least, until nothing fits.

    Args:
        problem: What fits where.
        scorer: Simulates once for each replica.
        vacancies: Where to begin, each for itself; they are simulated side by side.

    Source: AlpaServe (Li et al., OSDI 2023), section 4.2, the accelerated heuristic.
    """
    filled = list(vacancies)
    growing = list(range(len(filled)))
    while growing:
        scores = scorer.details([filled[index].groups for index in growing])
        still = []
        for index, score in zip(growing, scores, strict=True):
            found = next_replica(problem, filled[index], score)
            if found is not None:
                more = with_model(filled[index].groups, *found)
                filled[index] = replace(filled[index], groups=more)
                still.append(index)
        growing = still
    return [vacancy.groups for vacancy in filled]


def with_model(groups: Groups, index: int, model: int) -> Groups:
    """The groups with one more model in one of them; their order stays."""
    group = groups[index]
    more = Group(group.config, tuple(sorted((*group.models, model))))
    return (*groups[:index], more, *groups[index + 1 :])


def next_replica(problem: Problem, vacancy: Vacancy, score: Score) -> tuple[int, int] | None:
    """The least busy group that can take another model, and of these that which misses most."""
    served = score.num_served.tolist()
    missed = (score.num_requests - score.num_met).tolist()
    by_missed = sorted(vacancy.models, key=lambda model: -missed[model])
    for index in sorted(range(len(served)), key=lambda index: served[index]):
        group = vacancy.groups[index]
        room = problem.room(group)
        model_bytes = problem.model_bytes[group.config]
        for model in by_missed:
            if model_bytes[model] <= room and model not in group.models:
                return index, model
    return None
