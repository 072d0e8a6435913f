"""The Serve applications of a fabric's device groups: started, deleted and looked at."""

import asyncio
from collections.abc import Mapping
from typing import Any, Protocol

import ray
from ray import serve
from ray.serve.schema import ApplicationStatusOverview

from fabric.config import FabricConfig
from fabric.serve.launch import Launch, group_part
from fabric.serve.waiting import waiting_groups

# The head has no CPUs to give on clusters that keep work away from it.
ON_HEAD = {"node:__internal_head__": 0.001}


class Applications(Protocol):
    """Starts and removes device groups; all methods leave the event loop free."""

    async def start(self, groups: Mapping[str, FabricConfig]) -> None:
        """Start groups under these names, each by a configuration with it alone; don't wait."""
        ...

    async def delete(self, name: str) -> None:
        """End a group and wait until it is gone; one that there isn't is ignored."""
        ...

    async def failures(self) -> dict[str, str]:
        """Groups that can't be started, by name, and why."""
        ...

    async def waiting(self) -> dict[str, str]:
        """Groups that have no place on any node, by name, and what they wait for."""
        ...

    async def names(self) -> tuple[str, ...]:
        """The groups that there are, whether they serve or not."""
        ...


class ServeApplications:
    """Device groups as Serve applications, one for each."""

    def __init__(self, launch: Launch) -> None:
        self._launch = launch
        self._prefix = f"{launch.config['name']}-group-"

    async def start(self, groups: Mapping[str, FabricConfig]) -> None:
        """Start groups in a process that has what they are made of."""
        launches = {name: self._launch.of(config) for name, config in groups.items()}
        task: Any = ray.remote(start_groups)
        await task.options(num_cpus=0, resources=ON_HEAD, max_retries=0).remote(launches)

    async def delete(self, name: str) -> None:
        """Delete the group's application."""
        await asyncio.to_thread(serve.delete, self._prefix + name)

    async def failures(self) -> dict[str, str]:
        """Applications that Serve gave up deploying."""
        applications = await asyncio.to_thread(_applications)
        return {
            name.removeprefix(self._prefix): failure_reason(application)
            for name, application in applications.items()
            if name.startswith(self._prefix) and application.status == "DEPLOY_FAILED"
        }

    async def waiting(self) -> dict[str, str]:
        """Groups whose placement group has no place."""
        return await asyncio.to_thread(waiting_groups)

    async def names(self) -> tuple[str, ...]:
        """Groups that have an application."""
        found = await asyncio.to_thread(_applications)
        return tuple(n.removeprefix(self._prefix) for n in found if n.startswith(self._prefix))


def application_name(fabric: str, part: str) -> str:
    """What the Serve application of a part of a fabric is called."""
    return f"{fabric}-{part.replace(' ', '-')}"


def start_groups(launches: dict[str, Launch]) -> None:
    """Deploy device groups, by the names under which they run; don't wait for them."""
    # What a group consists of brings torch with it; the controller, which has this function
    # called in another process, does without.
    from fabric.serve.deployments import group_application

    targets = [
        serve.RunTarget(
            group_application(launch, name),
            name=application_name(str(launch.config["name"]), group_part(name)),
            route_prefix=None,
        )
        for name, launch in launches.items()
    ]
    serve.run_many(
        targets, wait_for_ingress_deployment_creation=False, wait_for_applications_running=False
    )


def failure_reason(application: ApplicationStatusOverview) -> str:
    """The last line of what Serve says of an application that it gave up."""
    messages = [deployment.message for deployment in application.deployments.values()]
    lines = [line for message in messages for line in message.splitlines() if line.strip()]
    return lines[-1].strip() if lines else application.message


def _applications() -> dict[str, ApplicationStatusOverview]:
    return dict(serve.status().applications)
