"""Where a search starts: models bucketed by latency, devices shared among the buckets."""

from collections.abc import Iterator, Sequence
from itertools import product

from placement.search.buckets import (
    best_shares,
    latency_buckets,
    neighbouring_unions,
)
from placement.search.climb import Scorers, Standing
from placement.search.greedy import Vacancy, empty_groups, fill_by_misses
from placement.search.partitions import equal_partitions
from placement.search.problem import Groups, Problem

MAX_BUCKETS = 5
# Finer than buckets that are used as they are, since neighbours are joined in every way.
DIFFERENCES = (0.2, 0.38, 0.6, 0.8, 0.95)
Devices = tuple[int, ...]
Bucket = tuple[int, ...]
Filled = dict[tuple[Bucket, Devices], tuple[float, Groups]]


def seeds(problem: Problem, scorers: Scorers) -> list[Standing]:
    """Filled placements to start from, the best first: one for each way to bucket the models.

    Neighbouring latency buckets are joined in every way. Each bucket is filled by the fast
    heuristic with every share of the devices, cut equally in every way; as buckets are served
    apart, the best shares follow from these by dynamic programming.
    """
    unions = list(neighbouring_unions(few_buckets(problem)))
    plans = [(union, list(divisions(problem, len(union)))) for union in unions]
    wanted = {
        (tuple(bucket), division[index])
        for union, choices in plans
        for division in choices
        for index, bucket in enumerate(union)
    }
    filled = fill_each(problem, scorers, sorted(wanted))
    found = [
        best_division(problem, filled, [tuple(bucket) for bucket in union])
        for union, choices in plans
        if choices
    ]
    standings = {scorers.standing(groups) for groups in found}
    return sorted(standings, key=lambda one: (-one.value, one.groups))


def few_buckets(problem: Problem) -> list[list[int]]:
    """Latency buckets, coarser until there are few."""
    for difference in DIFFERENCES:
        buckets = latency_buckets(problem, difference)
        if len(buckets) <= MAX_BUCKETS:
            return buckets
    return [list(range(problem.num_models))]


def share_step(num_devices: int) -> int:
    """What shares of devices are multiples of: a power of two, up to a sixth of all devices."""
    step = 1
    while step * 12 <= num_devices:
        step *= 2
    return step


def divisions(problem: Problem, num_buckets: int) -> Iterator[tuple[Devices, ...]]:
    """What each bucket may get: shares of one type of device, or one or more types wholly."""
    counts = problem.num_devices
    if num_buckets == 1:
        yield (counts,)
    elif len(counts) == 1:
        step = share_step(counts[0])
        # Any share of one bucket leaves some division of the rest: all that matter are these.
        for share in range(step, counts[0] - step * (num_buckets - 1) + 1, step):
            yield ((share,),) * num_buckets
        rest = counts[0] % step
        for share in range(step, counts[0] - step * (num_buckets - 1) + 1, step):
            yield ((share + rest,),) * num_buckets
    else:
        for owners in product(range(num_buckets), repeat=len(counts)):
            if len(set(owners)) == num_buckets:
                yield tuple(owned(counts, owners, bucket) for bucket in range(num_buckets))


def owned(counts: Devices, owners: Sequence[int], bucket: int) -> Devices:
    """Devices of each type that a bucket has if it has the types that it owns."""
    return tuple(
        count if owner == bucket else 0 for count, owner in zip(counts, owners, strict=True)
    )


def fill_each(
    problem: Problem, scorers: Scorers, wanted: Sequence[tuple[Bucket, Devices]]
) -> Filled:
    """The best equal partition for each bucket and devices, filled with the bucket's models."""
    scorer = scorers.slices[0]
    vacancies, owners = [], []
    for key in wanted:
        for partition in equal_partitions(problem, key[1]):
            vacancies.append(Vacancy(empty_groups(partition), key[0]))
            owners.append(key)
    groups = fill_by_misses(problem, scorer, vacancies)
    values = scorer.values(groups).tolist()
    filled: Filled = {}
    for key, value, one in zip(owners, values, groups, strict=True):
        if key not in filled or value > filled[key][0]:
            filled[key] = (value, one)
    return filled


def best_division(problem: Problem, filled: Filled, union: Sequence[Bucket]) -> Groups:
    """The groups of all buckets under the division of devices whose values sum to most."""
    counts = problem.num_devices
    if len(union) > 1 and len(counts) == 1:
        _, shares = best_shares(
            lambda bucket, share: filled[union[bucket], (share,)][0],
            len(union),
            counts[0],
            share_step(counts[0]),
        )
        given: tuple[Devices, ...] = tuple((share,) for share in shares)
    else:
        given = max(
            divisions(problem, len(union)),
            key=lambda division: sum(filled[key][0] for key in zip(union, division, strict=True)),
        )
    return sum((filled[key][1] for key in zip(union, given, strict=True)), ())
