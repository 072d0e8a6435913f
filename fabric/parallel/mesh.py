"""Which rank computes which part of a model, and on which device of which host."""

from dataclasses import dataclass
from enum import StrEnum

from fabric.core.errors import ConfigError
from fabric.core.plan import ParallelConfig


class Axis(StrEnum):
    """A direction of the mesh: the ranks that differ only in it form a group."""

    PIPELINE = "pipeline"
    TENSOR = "tensor"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class Device:
    """A device of a host; the index counts those of its kind."""

    host: str
    index: int
    is_cuda: bool = False


@dataclass(frozen=True, slots=True)
class Coordinates:
    """A rank's place: its stage, and its shard of the stage."""

    pp_rank: int
    tp_rank: int


@dataclass(frozen=True, slots=True)
class Mesh:
    """Devices in the order of the ranks: all shards of the first stage, then of the next.

    Raises:
        ConfigError: The number of devices isn't what the parallel config needs.
    """

    parallel: ParallelConfig
    devices: tuple[Device, ...]

    def __post_init__(self) -> None:
        if len(self.devices) != self.parallel.num_devices:
            raise ConfigError(
                f"{self.parallel} needs {self.parallel.num_devices} devices, "
                f"not {len(self.devices)}"
            )

    @property
    def size(self) -> int:
        """How many ranks there are."""
        return len(self.devices)

    def coordinates(self, rank: int) -> Coordinates:
        """A rank's place."""
        return Coordinates(*divmod(rank, self.parallel.tensor))

    def rank_at(self, place: Coordinates) -> int:
        """The rank at a place."""
        return place.pp_rank * self.parallel.tensor + place.tp_rank

    def ranks_along(self, axis: Axis, rank: int) -> tuple[int, ...]:
        """The ranks of the group along an axis that a rank belongs to, in its order."""
        place = self.coordinates(rank)
        if axis is Axis.TENSOR:
            return tuple(
                self.rank_at(Coordinates(place.pp_rank, i)) for i in range(self.parallel.tensor)
            )
        if axis is Axis.PIPELINE:
            return tuple(
                self.rank_at(Coordinates(i, place.tp_rank)) for i in range(self.parallel.pipeline)
            )
        return tuple(range(self.size))

    def neighbour(self, axis: Axis, rank: int, offset: int) -> int | None:
        """The rank so many steps further along an axis; None beyond the ends."""
        ranks = self.ranks_along(axis, rank)
        index = ranks.index(rank) + offset
        return ranks[index] if 0 <= index < len(ranks) else None

    def hosts(self, ranks: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """The ranks that share a host, for each host in the order of its first rank."""
        hosts: dict[str, list[int]] = {}
        for rank in ranks:
            hosts.setdefault(self.devices[rank].host, []).append(rank)
        return tuple(map(tuple, hosts.values()))
