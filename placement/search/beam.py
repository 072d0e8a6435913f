"""Fills device groups by beam search: every replica that fits is tried by simulation."""

from collections.abc import Sequence

from placement.groups import Group
from placement.search.greedy import with_model
from placement.search.problem import Groups, Problem
from placement.search.scoring import Scorer


def fill_by_beam(
    problem: Problem, scorer: Scorer, groups: Groups, models: Sequence[int], beam: int = 3
) -> Groups:
    """Add replicas, each time to the best ``beam`` placements, and return the best ever seen.

    Args:
        problem: What fits where.
        scorer: Simulates every candidate.
        groups: Where to begin.
        models: Those to place.
        beam: How many placements are kept after each replica.

    Source: AlpaServe (Li et al., OSDI 2023), algorithm 1.
    """
    kept: list[Groups] = [tuple(sorted(groups))]
    best = (scorer.value(kept[0]), kept[0])
    while kept:
        candidates = list(
            dict.fromkeys(more for groups in kept for more in one_more(problem, groups, models))
        )
        if not candidates:
            break
        values = scorer.values(candidates)
        ranked = sorted(zip(values.tolist(), candidates, strict=True), reverse=True)[:beam]
        best = max(best, ranked[0])
        kept = [groups for _, groups in ranked]
    return best[1]


def one_more(problem: Problem, groups: Groups, models: Sequence[int]) -> list[Groups]:
    """Every placement with one replica more; equal ones may come twice."""
    found = []
    seen: set[Group] = set()
    for index, group in enumerate(groups):
        if group in seen:
            continue
        seen.add(group)
        room = problem.room(group)
        model_bytes = problem.model_bytes[group.config]
        for model in models:
            if model_bytes[model] <= room and model not in group.models:
                found.append(tuple(sorted(with_model(groups, index, model))))
    return found
