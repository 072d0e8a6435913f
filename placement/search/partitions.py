"""Ways to cut devices into groups."""

from collections.abc import Sequence
from itertools import chain, product

from placement.search.problem import Problem


def equal_partitions(problem: Problem, num_devices: Sequence[int] | None = None) -> list[list[int]]:
    """Partitions into equal groups of each type of device, as configurations of the groups.

    What the last group of a type can't have is cut into the largest pipelines that it can.

    Args:
        problem: The configurations.
        num_devices: Of each type; all that there are if not given.
    """
    counts = problem.num_devices if num_devices is None else num_devices
    choices = [equal_cuts(problem, kind, count) for kind, count in enumerate(counts)]
    return [list(chain.from_iterable(cuts)) for cuts in product(*choices)]


def equal_cuts(problem: Problem, kind: int, num_devices: int) -> list[list[int]]:
    """Partitions of one type's devices into equal groups and a rest."""
    cuts = []
    for config in configs_of(problem, kind):
        number, rest = divmod(num_devices, problem.sizes[config])
        if number:
            cuts.append([config] * number + largest_cuts(problem, kind, rest))
    return cuts or [[]]


def largest_cuts(problem: Problem, kind: int, num_devices: int) -> list[int]:
    """Devices of one type cut into the largest groups, of as many stages as can be."""
    by_size = sorted(
        configs_of(problem, kind),
        key=lambda config: (problem.sizes[config], int(problem.times.num_stages[config])),
        reverse=True,
    )
    cuts = []
    for config in by_size:
        number, num_devices = divmod(num_devices, problem.sizes[config])
        cuts += [config] * number
    return cuts


def configs_of(problem: Problem, kind: int) -> list[int]:
    """The configurations that take devices of a type and can host a model."""
    return [
        config
        for config, its_kind in enumerate(problem.config_types)
        if its_kind == kind
        and min(problem.model_bytes[config], default=0.0) <= problem.budget_bytes[config]
    ]


def cuts_of(problem: Problem, kind: int, num_devices: int) -> list[list[int]]:
    """Partitions of a few devices of one type: into equal groups, or into two that differ."""
    cuts = equal_cuts(problem, kind, num_devices)
    configs = configs_of(problem, kind)
    for first in configs:
        for second in configs:
            rest = num_devices - problem.sizes[first] - problem.sizes[second]
            if first < second and rest >= 0:
                cuts.append([first, second, *largest_cuts(problem, kind, rest)])
    return [list(cut) for cut in dict.fromkeys(tuple(sorted(cut)) for cut in cuts)]
