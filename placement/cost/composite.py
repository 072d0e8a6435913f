"""Several sources of costs, of which the first that knows one is believed."""

from collections.abc import Sequence
from dataclasses import dataclass

from fabric.core.errors import ConfigError
from placement.cost.model import CostModel, ModelCost
from placement.devices import GroupConfig


@dataclass(frozen=True, slots=True)
class CostSource:
    """A source, and what people call it: "measured", "table", "roofline"."""

    name: str
    costs: CostModel


class Costs:
    """Knows what any of its sources knows: put what was measured first, and what is reckoned last.

    A configuration of which a source knows the model, but not this configuration, is looked for in
    the next one.
    """

    def __init__(self, sources: Sequence[CostSource]) -> None:
        """Ask these sources, in this order."""
        self._sources = tuple(sources)

    def cost(self, model: str, config: GroupConfig) -> ModelCost | None:
        """What the model costs there; None if it can't be cut so.

        Raises:
            ConfigError: No source knows the model, or the device type.
        """
        found = self._find(model, config)
        return None if found is None else found[1]

    def source(self, model: str, config: GroupConfig) -> str | None:
        """The name of the source that :meth:`cost` believes; None if it has no cost.

        Raises:
            ConfigError: As :meth:`cost` does.
        """
        found = self._find(model, config)
        return None if found is None else found[0]

    def _find(self, model: str, config: GroupConfig) -> tuple[str, ModelCost] | None:
        refusals: list[str] = []
        for source in self._sources:
            try:
                cost = source.costs.cost(model, config)
            except ConfigError as error:
                refusals.append(f"{source.name}: {error.message}")
                continue
            if cost is not None:
                return source.name, cost
        if len(refusals) == len(self._sources):
            raise ConfigError("; ".join(refusals) or f"there are no costs of {model!r}")
        return None
