"""How few devices are enough."""

from collections.abc import Callable

from placement.planning.problem import Planning
from placement.planning.report import Fewest


def fewest_devices(planning: Planning, progress: Callable[[str, float], None]) -> Fewest:
    """The cheapest devices, of those that there are, with which the target is attained."""
    raise NotImplementedError
