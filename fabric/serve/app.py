"""Starts and stops a fabric on Ray: the controller, the routers and the device groups."""

import logging
import os
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError

from fabric.config import FabricConfig
from fabric.core.errors import ConfigError
from fabric.serve.applications import application_name, failure_reason
from fabric.serve.deployments import (
    group_application,
    new_launch,
    router_application,
    start_controller,
)
from fabric.serve.directory import Directory
from fabric.serve.launch import NAMESPACE, ROUTER, group_part
from fabric.serve.shard_actors import group_bundles

logger = logging.getLogger(__name__)

STOP_TIMEOUT_S = 10.0


class DeployedFabric:
    """A fabric that this process started on Ray."""

    def __init__(self, config: FabricConfig) -> None:
        """Start Ray, the controller, the device groups and the routers; don't wait for them."""
        self._config = config
        _start_ray(config)
        try:
            self._deploy()
        except BaseException:
            ray.shutdown()
            raise

    def directory(self) -> Directory:
        """Where groups and routers serve, and how far the others are."""
        directory: Directory = ray.get(self._controller.directory.remote())
        return directory

    def failures(self) -> dict[str, str]:
        """Parts that Serve gave up deploying, with the last line of what went wrong."""
        applications = serve.status().applications
        return {
            part: failure_reason(applications[name])
            for name, part in self._parts.items()
            if name in applications and applications[name].status == "DEPLOY_FAILED"
        }

    def stop(self) -> None:
        """End the applications and the controller, and leave Ray (ending a local one)."""
        if self._config.ray.address is not None:
            for name in {*self._parts, *self._groups_now()}:
                serve.delete(name)
            ray.kill(self._controller)
        ray.shutdown()

    def _groups_now(self) -> list[str]:
        """The applications of the groups that run now, by whatever plan."""
        try:
            names = ray.get(self._controller.stop.remote(), timeout=STOP_TIMEOUT_S)
        except (RayError, TimeoutError):
            logger.warning("the controller does not answer; what plans started may stay")
            return []
        return [application_name(self._config.name, group_part(name)) for name in names]

    def _deploy(self) -> None:
        config = self._config
        launch = new_launch(config)
        self._controller = start_controller(launch)
        names = [group.name for group in config.groups]
        apps = {
            group_part(name): group_application(launch.of(config.only(name)), name)
            for name in names
        }
        apps[ROUTER] = router_application(config, launch)
        self._parts = {application_name(config.name, part): part for part in apps}
        targets = [
            serve.RunTarget(apps[part], name=name, route_prefix=None)
            for name, part in self._parts.items()
        ]
        serve.start(proxy_location="Disabled", logging_config={"log_level": "WARNING"})
        serve.run_many(
            targets,
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )


def _start_ray(config: FabricConfig) -> None:
    """Join the configured Ray cluster, or start a local one that ends with this process.

    Raises:
        ConfigError: Ray can't be joined or started so.
    """
    # What matters to the user is shown by the command that started this.
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
        ray.init(
            namespace=NAMESPACE,
            log_to_driver=False,
            logging_level=logging.WARNING,
            **_ray_options(config),
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        ray.shutdown()
        raise ConfigError(
            f"Ray can't be joined or started: {' '.join(str(error).split())}"
        ) from error


def _ray_options(config: FabricConfig) -> dict[str, Any]:
    section = config.ray
    if section.address is not None:
        return {"address": section.address}
    bundles = [bundle for group in config.groups for bundle in group_bundles(group)]
    # A plan starts new groups beside the old ones.
    needed = 1 + 2 * sum(bundle["CPU"] for bundle in bundles)
    return {
        # Without this, Ray would join a cluster that somebody started on this machine.
        "address": "local",
        "num_cpus": section.num_cpus or max(int(needed + 0.5), os.cpu_count() or 1),
        "resources": dict(section.resources),
        "object_store_memory": int(section.object_store),
        "include_dashboard": False,
    }
