"""Policies to compare a search with: what others do, behind one protocol."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Protocol

from fabric.core.errors import ConfigError
from placement.groups import Group
from placement.search.beam import fill_by_beam
from placement.search.greedy import Vacancy, empty_groups, fill_by_misses, with_model
from placement.search.partitions import configs_of, equal_partitions, largest_cuts
from placement.search.problem import Groups, Problem
from placement.search.reshape import trimmed
from placement.search.scoring import Scorer
from placement.search.search import SearchSettings, search


class Policy(Protocol):
    """Decides on a placement by the training requests."""

    @property
    def name(self) -> str:
        """What tables call it."""
        ...

    def place(self, problem: Problem) -> Groups:
        """The placement, which devices and memory suffice for.

        Raises:
            ConfigError: The problem has no configuration that the policy needs.
        """
        ...


@dataclass(frozen=True, slots=True)
class SelectiveReplication:
    """Whole models on single devices, those that miss most more often.

    Source: AlpaServe (Li et al., OSDI 2023), section 6.1, the baseline "SR".
    """

    name: str = "sr-greedy"

    def place(self, problem: Problem) -> Groups:
        """Groups of one device each."""
        return fill_equal(problem, 1)


@dataclass(frozen=True, slots=True)
class EqualPipelines:
    """Equal pipelines of ``num_stages``, filled by the fast heuristic.

    Source: AlpaServe (Li et al., OSDI 2023), section 6.6, "greedy placement".
    """

    num_stages: int

    @property
    def name(self) -> str:
        """With the number of stages."""
        return f"mp-greedy-{self.num_stages}"

    def place(self, problem: Problem) -> Groups:
        """Groups of one device for each stage."""
        return fill_equal(problem, self.num_stages)


@dataclass(frozen=True, slots=True)
class RoundRobin:
    """Equal pipelines that take models in turn, until the next in turn has no room for any.

    Source: AlpaServe (Li et al., OSDI 2023), section 6.6, "round robin", and its code.
    """

    num_stages: int = 4
    name: str = "mp-round-robin"

    def place(self, problem: Problem) -> Groups:
        """Each group takes the next model, of all in a circle, that fits and isn't there."""
        groups = empty_groups(pipelines(problem, self.num_stages))
        first = 0
        for index in cycle(range(len(groups))):
            circle = (*range(first, problem.num_models), *range(first))
            fitting = (model for model in circle if has_room(problem, groups[index], model))
            model = next(fitting, None)
            if model is None:
                break
            groups = with_model(groups, index, model)
            first = (model + 1) % problem.num_models
        return trimmed(groups)


@dataclass(frozen=True, slots=True)
class OneModelEach:
    """A group for each model, all of one configuration; models without one are served nowhere.

    Source: AlpaServe (Li et al., OSDI 2023), section 6.3, dedicated devices.
    """

    config: int
    name: str = "mp-equal"

    def place(self, problem: Problem) -> Groups:
        """The models with most requests first, while there are devices."""
        kind = problem.config_types[self.config]
        number = problem.num_devices[kind] // problem.sizes[self.config]
        counts = problem.model_counts
        models = sorted(range(problem.num_models), key=lambda model: -counts[model])
        hosted = [model for model in models if problem.fits(self.config, (model,))][:number]
        groups = empty_groups([self.config] * len(hosted))
        for index, model in enumerate(hosted):
            groups = with_model(groups, index, model)
        return tuple(sorted(groups))


@dataclass(frozen=True, slots=True)
class FastHeuristic:
    """The best of all equal partitions, each filled by the fast heuristic.

    Source: AlpaServe (Li et al., OSDI 2023), section 4.2; its code's "mp-search".
    """

    name: str = "mp-search"

    def place(self, problem: Problem) -> Groups:
        """The placement of most value."""
        return fill_best(problem, [tuple(range(problem.num_models))], [problem.num_devices])[0]


@dataclass(frozen=True, slots=True)
class BeamSearch:
    """Equal groups of one configuration, filled by AlpaServe's algorithm 1.

    Source: AlpaServe (Li et al., OSDI 2023), algorithm 1.
    """

    config: int
    beam: int = 3
    name: str = "mp-beam"

    def place(self, problem: Problem) -> Groups:
        """The best placement that the beam search sees."""
        kind = problem.config_types[self.config]
        number, rest = divmod(problem.num_devices[kind], problem.sizes[self.config])
        partition = [self.config] * number + largest_cuts(problem, kind, rest)
        scorer = Scorer(problem.requests, problem.times)
        models = range(problem.num_models)
        return trimmed(fill_by_beam(problem, scorer, empty_groups(partition), models, self.beam))


@dataclass(frozen=True, slots=True)
class OurSearch:
    """The search of this package."""

    settings: SearchSettings = field(default_factory=SearchSettings)
    name: str = "fabric"

    def place(self, problem: Problem) -> Groups:
        """What :func:`placement.search.search.search` finds."""
        return search(problem, self.settings).groups


def has_room(problem: Problem, group: Group, model: int) -> bool:
    """Whether a group that doesn't host the model yet has the memory for it."""
    return model not in group.models and problem.fits(group.config, (*group.models, model))


def pipelines(problem: Problem, num_stages: int) -> list[int]:
    """The partition into pipelines of one device a stage, and smaller ones of what is left.

    Raises:
        ConfigError: No configuration is such a pipeline.
    """
    partition = []
    for kind, num_devices in enumerate(problem.num_devices):
        fitting = [
            config
            for config in configs_of(problem, kind)
            if problem.sizes[config] == num_stages == int(problem.times.num_stages[config])
        ]
        if fitting:
            number, rest = divmod(num_devices, num_stages)
            partition += [fitting[0]] * number + largest_cuts(problem, kind, rest)
    if not partition:
        raise ConfigError(f"no configuration is a pipeline of {num_stages} devices")
    return partition


def fill_equal(problem: Problem, num_stages: int) -> Groups:
    """Equal pipelines filled by the fast heuristic."""
    groups = empty_groups(pipelines(problem, num_stages))
    vacancy = Vacancy(groups, tuple(range(problem.num_models)))
    scorer = Scorer(problem.requests, problem.times)
    return trimmed(fill_by_misses(problem, scorer, [vacancy])[0])


def fill_best(
    problem: Problem, buckets: Sequence[tuple[int, ...]], devices: Sequence[tuple[int, ...]]
) -> list[Groups]:
    """The best filled equal partition for each pair of a bucket of models and its devices."""
    scorer = Scorer(problem.requests, problem.times)
    vacancies, owners = [], []
    for owner, (models, counts) in enumerate(zip(buckets, devices, strict=True)):
        for partition in equal_partitions(problem, counts):
            vacancies.append(Vacancy(empty_groups(partition), models))
            owners.append(owner)
    filled = fill_by_misses(problem, scorer, vacancies)
    values = scorer.values(filled).tolist()
    best: dict[int, tuple[float, Groups]] = {}
    for owner, value, groups in zip(owners, values, filled, strict=True):
        if owner not in best or value > best[owner][0]:
            best[owner] = (value, groups)
    return [trimmed(best[owner][1]) for owner in range(len(buckets))]
