"""Placements as the search handles them: small, hashable, models and configurations by number."""

from dataclasses import dataclass

from placement.devices import GroupConfig


@dataclass(frozen=True, slots=True, order=True)
class Group:
    """A device group: the number of its configuration, and of the models it hosts, ascending."""

    config: int
    models: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Placement:
    """Device groups of ``configs`` that host models of ``models`` (their names)."""

    configs: tuple[GroupConfig, ...]
    models: tuple[str, ...]
    groups: tuple[Group, ...]

    @property
    def num_devices(self) -> int:
        """Devices that all groups take."""
        return sum(self.configs[group.config].num_devices for group in self.groups)
