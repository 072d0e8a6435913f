"""What the processes of a launched fabric share: how they are told, and how they meet."""

from dataclasses import dataclass
from typing import Any

import ray

NAMESPACE = "fabric"


@dataclass(frozen=True, slots=True)
class Launch:
    """What every process of a launched fabric is told; ``config`` is the file's tree."""

    config: dict[str, object]
    controller: str
    link_secret: str


def find_controller(launch: Launch) -> Any:
    """The handle of the fabric's controller actor."""
    return ray.get_actor(launch.controller, namespace=NAMESPACE)
