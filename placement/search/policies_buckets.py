"""AlpaServe's search with buckets: models of other latencies on devices of their own."""

from dataclasses import dataclass

from fabric.core.errors import ConfigError
from placement.search.buckets import latency_buckets, shares_near_load
from placement.search.policies import FastHeuristic, fill_best
from placement.search.problem import Groups, Problem
from placement.search.scoring import Scorer


@dataclass(frozen=True, slots=True)
class SeparatedSearch:
    """The fast heuristic for each bucket apart with every plausible share of devices.

    If models together are better, they stay together.

    Source: AlpaServe (Li et al., OSDI 2023), algorithm 2; its code's "mp-search-sep".
    """

    name: str = "mp-search-sep"

    def place(self, problem: Problem) -> Groups:
        """The best union of the buckets' placements.

        Raises:
            ConfigError: There are devices of several types, which the algorithm doesn't know.
        """
        if len(problem.num_devices) != 1:
            raise ConfigError("mp-search-sep needs devices of one type")
        candidates = [FastHeuristic().place(problem), *separated(problem)]
        scorer = Scorer(problem.requests, problem.times)
        values = scorer.values(candidates).tolist()
        return max(zip(values, candidates, strict=True))[1]


def separated(problem: Problem) -> list[Groups]:
    """The placement for each way to share the devices among the buckets."""
    buckets = [tuple(bucket) for bucket in latency_buckets(problem)]
    if not 1 < len(buckets) <= problem.num_devices[0]:
        return []
    choices = shares_near_load(problem, [list(one) for one in buckets], problem.num_devices[0])
    keys = sorted({pair for shares in choices for pair in zip(buckets, shares, strict=True)})
    best = fill_best(problem, [key[0] for key in keys], [(key[1],) for key in keys])
    placed = dict(zip(keys, best, strict=True))
    return [
        tuple(sorted(sum((placed[pair] for pair in zip(buckets, shares, strict=True)), ())))
        for shares in choices
    ]
