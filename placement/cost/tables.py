"""Costs that somebody measured, by model and by kind of device group."""

from collections.abc import Sequence
from dataclasses import dataclass

from fabric.core.errors import ConfigError
from placement.cost.model import ModelCost
from placement.devices import GroupConfig


@dataclass(frozen=True, slots=True)
class TableEntry:
    """A model's cost on one kind of device group."""

    model: str
    config: GroupConfig
    cost: ModelCost


class TableCost:
    """Knows what was measured, and nothing else."""

    def __init__(self, entries: Sequence[TableEntry]) -> None:
        """Know these costs; of two for one model and configuration, the later one counts."""
        self._costs = {(entry.model, entry.config): entry.cost for entry in entries}
        self._models = {model for model, _ in self._costs}
        self._devices = {config.device for _, config in self._costs}

    def cost(self, model: str, config: GroupConfig) -> ModelCost | None:
        """What was measured; None if the model was, but not in this configuration.

        Raises:
            ConfigError: The model, or the device type, is in none of the entries.
        """
        for what, name, known in (
            ("model", model, self._models),
            ("device type", config.device, self._devices),
        ):
            if name not in known:
                listed = ", ".join(sorted(known)) or "none"
                raise ConfigError(f"{what} {name!r} was not measured; measured: {listed}")
        return self._costs.get((model, config))
