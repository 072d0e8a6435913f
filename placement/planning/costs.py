"""Which costs a planner's input has: those that it names files of, and a roofline for the rest."""

from collections.abc import Sequence

from placement.config.schema import PlanInput
from placement.cost.model import CostModel
from placement.cost.roofline import RooflineCost
from placement.devices import DeviceType
from placement.shape import ModelShape


def costs_of(
    inputs: PlanInput, shapes: Sequence[ModelShape | None], types: Sequence[DeviceType]
) -> CostModel:
    """The costs of all models of an input.

    Raises:
        ConfigError: A file can't be read, or is not of its format.
    """
    known = {
        section.id: found
        for section, found in zip(inputs.models, shapes, strict=True)
        if found is not None
    }
    return RooflineCost(known, {kind.name: kind for kind in types})
