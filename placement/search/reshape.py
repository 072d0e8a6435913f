"""Partitions near that of a placement: one or two of its groups cut in another way."""

from collections.abc import Iterator
from itertools import combinations

from placement.groups import Group
from placement.search.greedy import Vacancy, empty_groups
from placement.search.partitions import cuts_of
from placement.search.problem import Groups, Problem


def reshaped(problem: Problem, groups: Groups) -> list[Vacancy]:
    """Every other way to cut one group, two groups, or a group and idle devices.

    The groups that are cut anew are empty; all models may fill them.
    """
    models = tuple(range(problem.num_models))
    shape = sorted(group.config for group in groups)
    found: dict[Groups, None] = {}
    for kind, left, num_devices in freed(problem, groups):
        for cut in cuts_of(problem, kind, num_devices):
            if sorted([*cut, *(group.config for group in left)]) != shape:
                found[tuple(sorted((*left, *empty_groups(cut))))] = None
    return [Vacancy(more, models) for more in found]


def freed(problem: Problem, groups: Groups) -> Iterator[tuple[int, Groups, int]]:
    """The type of device, the groups that stay, and the number of devices to cut anew."""
    used = problem.used_devices([group.config for group in groups])
    for kind in range(len(problem.num_devices)):
        idle = problem.num_devices[kind] - used[kind]
        mine = [
            index
            for index, group in enumerate(groups)
            if problem.config_types[group.config] == kind
        ]
        if idle:
            yield kind, groups, idle
        for taken in (*combinations(mine, 1), *combinations(mine, 2)):
            size = sum(problem.sizes[groups[index].config] for index in taken)
            yield kind, without(groups, taken), size + idle


def without(groups: Groups, taken: tuple[int, ...]) -> Groups:
    """The groups but those of these numbers."""
    return tuple(group for index, group in enumerate(groups) if index not in taken)


def trimmed(groups: Groups) -> tuple[Group, ...]:
    """The groups that host anything."""
    return tuple(group for group in groups if group.models)
