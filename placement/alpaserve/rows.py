"""Published placements with the attainment that AlpaServe gave for them, and their replay."""

import json
from dataclasses import dataclass
from pathlib import Path

from fabric.core.errors import ConfigError
from fabric.core.plan import ParallelConfig
from placement.alpaserve.cases import Case, case_requests, case_times
from placement.alpaserve.profile import V100Profile
from placement.alpaserve.workload import num_edge_requests
from placement.groups import Group
from placement.simulator.request_level import RequestSimulator, Score

Fields = dict[str, object]


@dataclass(frozen=True, slots=True)
class Row:
    """A placement on a case: ``groups`` have the numbers of ``configs``.

    ``num_requests`` arrived. ``published`` is its attainment as published, ``replayed`` that of an
    independent replay with the same service times as ours, None if there is none.
    """

    case: Case
    policy: str
    experiment: str
    num_devices: int
    num_requests: int
    configs: tuple[ParallelConfig, ...]
    groups: tuple[Group, ...]
    published: float
    replayed: float | None

    @property
    def is_real(self) -> bool:
        """Whether the attainment was measured on a cluster, not simulated."""
        return self.case.models.endswith("-real")

    @property
    def is_replicated(self) -> bool:
        """Whether the policy only replicates models, one whole model to a GPU."""
        return self.policy.startswith("sr-")

    @property
    def expected(self) -> float:
        """``replayed`` where there is one, otherwise ``published``."""
        return self.published if self.replayed is None else self.replayed


def read_rows(path: Path) -> list[Row]:
    """Read a file of JSON objects, one a line.

    Raises:
        ConfigError: A line isn't such an object, or it lacks a field; the message has its number.
    """
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error}") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(parse_row(json.loads(line)))
        except KeyError as error:
            raise ConfigError(f"{path}, line {number}: {error} is missing") from error
        except (ValueError, TypeError, ConfigError) as error:
            raise ConfigError(f"{path}, line {number}: {error}") from error
    return rows


def parse_row(fields: Fields) -> Row:
    """A row of its JSON object. A configuration is (replicas, operators cut over, stages)."""
    case = Case(
        models=str(fields["set"]),
        num_models=int(number(fields["models"])),
        rate_per_s=number(fields["rate"]),
        cv=number(fields["cv"]),
        slo_scale=number(fields["slo_scale"]),
        duration_s=number(fields["duration"]),
    )
    cuts = [ParallelConfig(cut[2], cut[1]) for cut in int_lists(fields["configs"])]
    configs = tuple(dict.fromkeys(cuts))
    hosted = int_lists(fields["groups"])
    replayed = fields.get("replayed")
    return Row(
        case=case,
        policy=str(fields["policy"]),
        experiment=str(fields["exp"]),
        num_devices=int(number(fields["devices"])),
        num_requests=int(number(fields["requests"])),
        configs=configs,
        groups=tuple(
            Group(configs.index(cut), tuple(sorted(models)))
            for cut, models in zip(cuts, hosted, strict=True)
        ),
        published=number(fields["published"]),
        replayed=None if replayed is None else number(replayed),
    )


def row_simulator(row: Row, profile: V100Profile, seed: int = 0) -> RequestSimulator:
    """The simulator of a row's case, which leaves ten seconds at either end out of scores."""
    requests = case_requests(row.case, profile, seed)
    times = case_times(row.case, profile, row.configs)
    return RequestSimulator(requests, times, num_edge_requests(requests.arrivals_s))


def replay_row(row: Row, profile: V100Profile) -> Score:
    """What our simulator gives for a row."""
    return row_simulator(row, profile).score(row.groups)


def number(value: object) -> float:
    """The value if it is a number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"{value!r} is not a number")
    return float(value)


def int_lists(value: object) -> list[list[int]]:
    """The value if it is a list of lists of numbers."""
    if not isinstance(value, list) or not all(isinstance(one, list) for one in value):
        raise ConfigError(f"{value!r} is not a list of lists")
    return [[int(number(item)) for item in one] for one in value]
