"""Finds a placement: partitions, configurations and models together, scored by simulation."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fabric.core.errors import ConfigError
from placement.groups import Group
from placement.search.beam import fill_by_beam
from placement.search.climb import Climb, Scorers, Standing
from placement.search.greedy import empty_groups, fill_by_misses
from placement.search.problem import Groups, Problem
from placement.search.reshape import reshaped, trimmed
from placement.search.seeds import seeds
from placement.simulator.request_level import Score

MAX_WORK = 700_000_000
# The share of the effort that each start may climb before the best of them gets the rest.
TRIAL_SHARE = 0.04
BEAM_SHARE = 0.1
NUM_TRIALS = 3
NUM_FINALISTS = 1
# How much attainment is given up at first, to come to better placements later.
TEMPERATURE = 5e-4
COOL_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a search is: the share of its effort, and the best value so far."""

    share: float
    value: float


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """How much to search.

    ``max_work`` is in requests replayed, so that results don't depend on the machine; None takes
    what suits the problem. ``max_seconds`` stops earlier, and then they do. ``beam`` is the width
    of beam searches; these are left out where they would take long. ``hosts_all``: no model may be
    left out for the sake of others, as far as there is room.
    """

    max_work: int | None = None
    max_seconds: float | None = None
    seed: int = 0
    beam: int = 3
    num_threads: int | None = None
    hosts_all: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class SearchResult:
    """A placement and its score by the training requests.

    ``alternatives`` are other placements that were found, the best first. ``work`` is what was
    replayed, in requests.
    """

    groups: Groups
    value: float
    score: Score
    num_simulations: int
    work: int
    seconds: float
    alternatives: tuple[Standing, ...]

    @property
    def attainment(self) -> float:
        """The share of training requests that meet their objective."""
        return self.score.attainment


class _Effort:
    """What was spent of what may be, as a share, and who wants to know."""

    def __init__(
        self,
        scorers: Scorers,
        max_work: int,
        max_seconds: float | None,
        report: Callable[[Progress], None] | None,
    ) -> None:
        self._scorers = scorers
        self._max_work = max_work
        self._max_seconds = max_seconds
        self._report = report
        self._start = time.perf_counter()
        self._best = float("-inf")

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._start

    @property
    def share(self) -> float:
        share = self._scorers.work / self._max_work
        return share if self._max_seconds is None else max(share, self.seconds / self._max_seconds)

    def note(self, value: float) -> None:
        self._best = max(self._best, value)
        if self._report:
            self._report(Progress(min(1.0, self.share), self._best))


def search(
    problem: Problem,
    settings: SearchSettings | None = None,
    starts: Sequence[Sequence[Group]] = (),
    report: Callable[[Progress], None] | None = None,
) -> SearchResult:
    """Find a placement that meets the objectives of as many requests as can be.

    It starts from latency buckets filled by the fast heuristic and, where that is quick, by beam
    search; improves the best of them and of their partitions' neighbours a little; and anneals the
    best of all with the rest of the effort. Equal arguments give equal results unless
    ``max_seconds`` is set.

    Args:
        problem: What to place.
        settings: How much to search.
        starts: Placements to start from besides.
        report: Called now and then with the progress.

    Raises:
        ConfigError: There are no devices, models or requests, or a start doesn't fit.

    Source: AlpaServe (Li et al., OSDI 2023), section 4.2, whose algorithms it contains.
    """
    settings = settings or SearchSettings()
    if not any(problem.num_devices) or not problem.num_models or not problem.num_configs:
        raise ConfigError("a search needs devices, configurations and models")
    if len(problem.requests.arrivals_s) == 0:
        raise ConfigError("a search needs requests to train on")
    for groups in starts:
        problem.check(groups)
    scorers = Scorers(problem, settings.num_threads, hosts_all=settings.hosts_all)
    max_work = settings.max_work or suitable_work(problem)
    effort = _Effort(scorers, max_work, settings.max_seconds, report)
    found = _Search(problem, scorers, effort, settings).run(starts)
    best = trimmed(found[0].groups)
    return SearchResult(
        groups=best,
        value=found[0].value,
        score=scorers.all.details([best])[0],
        num_simulations=scorers.num_simulations,
        work=scorers.work,
        seconds=effort.seconds,
        alternatives=tuple(found[1:]),
    )


def suitable_work(problem: Problem) -> int:
    """Requests to replay: more for more models, groups and requests, within limits."""
    num_requests = len(problem.requests.arrivals_s)
    return min(MAX_WORK, max(1, num_requests * problem.num_models * sum(problem.num_devices)) * 25)


class _Search:
    """The phases of one search."""

    def __init__(
        self, problem: Problem, scorers: Scorers, effort: _Effort, settings: SearchSettings
    ) -> None:
        self._problem = problem
        self._scorers = scorers
        self._effort = effort
        self._settings = settings
        self._rng = random.Random(settings.seed)

    def run(self, starts: Sequence[Sequence[Group]]) -> list[Standing]:
        """All placements that were climbed to, the best first."""
        given = [self._scorers.standing(tuple(groups)) for groups in starts]
        first = best_first([*given, *seeds(self._problem, self._scorers)])
        self._effort.note(first[0].value)
        first = best_first([*first, *self._beams(first[:1])])
        tried = [self._trial(start) for start in first[:NUM_TRIALS]]
        tried = best_first([*tried, *first[NUM_TRIALS:]])
        tried += [self._trial(start) for start in self._reshapes(tried[0].groups)]
        finalists = distinct_partitions(best_first(tried))[:NUM_FINALISTS]
        share = max(1e-9, 1.0 - self._effort.share) / len(finalists)
        return best_first([*(self._anneal(one, share) for one in finalists), *tried])

    def _beams(self, starts: Sequence[Standing]) -> list[Standing]:
        """The starts' partitions filled by beam search, if that is quick."""
        problem = self._problem
        found = []
        for start in starts:
            num_replicas = sum(len(group.models) for group in start.groups)
            num_tried = problem.num_models * len(start.groups) * num_replicas * self._settings.beam
            if num_tried * len(problem.requests.arrivals_s) * NUM_TRIALS < MAX_WORK * BEAM_SHARE:
                empty = empty_groups([group.config for group in start.groups])
                models = range(problem.num_models)
                filled = fill_by_beam(
                    problem, self._scorers.all, empty, models, self._settings.beam
                )
                found.append(self._scorers.standing(filled))
        return found

    def _reshapes(self, groups: Groups) -> list[Standing]:
        """The best of the placements whose groups are cut a little differently."""
        scorer = self._scorers.slices[-1]
        filled = fill_by_misses(self._problem, scorer, reshaped(self._problem, groups))
        if not filled:
            return []
        ranked = sorted(zip(scorer.values(filled).tolist(), filled, strict=True), reverse=True)
        return [self._scorers.standing(one) for _, one in ranked[: NUM_TRIALS - 1]]

    def _trial(self, start: Standing) -> Standing:
        """The start after a little climbing."""
        climb = Climb(self._problem, self._scorers, start, self._rng)
        end = min(1.0, self._effort.share + TRIAL_SHARE)
        while self._effort.share < end and not climb.is_over:
            climb.step()
        self._effort.note(climb.best.value)
        return climb.best

    def _anneal(self, start: Standing, share: float) -> Standing:
        """The start after so large a share of all effort."""
        climb = Climb(self._problem, self._scorers, start, self._rng)
        begin = self._effort.share
        while not climb.is_over:
            done = (self._effort.share - begin) / share
            if done >= 1.0 or self._effort.share >= 1.0:
                break
            climb.step(TEMPERATURE * max(0.0, 1.0 - done / COOL_SHARE))
            self._effort.note(climb.best.value)
        return climb.best


def distinct_partitions(standings: Sequence[Standing]) -> list[Standing]:
    """The first of those whose groups have the same configurations."""
    first: dict[tuple[int, ...], Standing] = {}
    for one in standings:
        first.setdefault(tuple(sorted(group.config for group in one.groups)), one)
    return list(first.values())


def best_first(standings: Sequence[Standing]) -> list[Standing]:
    """Each placement once, the best first."""
    return sorted(dict.fromkeys(standings), key=lambda one: (-one.value, one.groups))
