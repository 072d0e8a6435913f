"""What the processes of a launched fabric share: how they are told, and how they meet."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import ray

from fabric.config import FabricConfig
from fabric.core.errors import FabricError

NAMESPACE = "fabric"
ROUTER = "router"


@dataclass(frozen=True, slots=True)
class Launch:
    """What every process of a launched fabric is told; ``config`` is the file's tree."""

    config: dict[str, object]
    controller: str
    link_secret: str

    def of(self, config: FabricConfig) -> "Launch":
        """The same with another configuration."""
        return replace(self, config=config.model_dump(mode="json"))


def group_part(group: str) -> str:
    """What a device group is called among the parts of a fabric, as ROUTER is."""
    return f"group {group}"


def find_controller(launch: Launch) -> Any:
    """The handle of the fabric's controller actor."""
    return ray.get_actor(launch.controller, namespace=NAMESPACE)


@asynccontextmanager
async def reported_failure(controller: Any, part: str) -> AsyncIterator[None]:
    """Tell the controller at once why a part can't start; Serve itself tries three times first."""
    try:
        yield
    except FabricError as error:
        await controller.note_failure.remote(part, error.message)
        raise
