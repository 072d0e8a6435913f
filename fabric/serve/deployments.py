"""What a fabric consists of on Ray: a controller actor, and a deployment for each part."""

import secrets
from typing import Any, Literal

import ray
from ray import serve

from fabric.config import FabricConfig, parse_config
from fabric.serve.applications import ON_HEAD, ServeApplications
from fabric.serve.controller import Controller
from fabric.serve.group_replica import GroupReplica
from fabric.serve.launch import NAMESPACE, Launch
from fabric.serve.router_replica import RouterReplica
from fabric.serve.shard_actors import group_bundles

HEALTH: dict[str, Any] = {
    "health_check_period_s": 1.0,
    "health_check_timeout_s": 5.0,
    "graceful_shutdown_timeout_s": 1.0,
    "graceful_shutdown_wait_loop_s": 0.1,
}


def build(config: FabricConfig) -> serve.Application:
    """All of a fabric as one Serve application, for `serve run` and `serve deploy`.

    Serve makes the configuration of the application's ``args``. The controller outlives the
    application: it takes no resources, and the next deployment of the same name uses it again.
    """
    launch = new_launch(config)
    start_controller(launch, lifetime="detached")
    groups = [
        group_application(launch.of(config.only(group.name)), group.name) for group in config.groups
    ]
    return router_application(config, launch, *groups)


def new_launch(config: FabricConfig) -> Launch:
    """What every process of a fabric is told, with a secret of its own."""
    tree = config.model_dump(mode="json")
    return Launch(tree, f"{config.name}-controller", secrets.token_hex(32))


class ControllerActor(Controller):
    """A controller that knows whether it is the first one of its launch."""

    def __init__(self, launch: Launch | None) -> None:
        is_restarted: bool = ray.get_runtime_context().was_current_actor_reconstructed
        applications = None if launch is None else ServeApplications(launch)
        super().__init__(launch, applications, is_restarted)


def start_controller(launch: Launch, lifetime: Literal["detached"] | None = None) -> Any:
    """The fabric's controller actor, which ends with this process if it isn't detached.

    A detached one outlives a launch, and leaves starting and removing groups to Serve.
    """
    controller: Any = ray.remote(ControllerActor)
    return controller.options(
        name=launch.controller,
        namespace=NAMESPACE,
        lifetime=lifetime,
        get_if_exists=lifetime is not None,
        num_cpus=0,
        resources=ON_HEAD,
        max_restarts=-1,
    ).remote(launch if lifetime is None else None)


def group_application(launch: Launch, name: str) -> serve.Application:
    """One replica that owns a placement group with a bundle for each device.

    Args:
        launch: Of a configuration with this group alone.
        name: What the group is called while it runs.
    """
    (group,) = parse_config(launch.config, "the launch").groups
    bundles = group_bundles(group)
    deployment = serve.deployment(
        name=f"group-{name}",
        num_replicas=1,
        placement_group_bundles=bundles,
        placement_group_strategy="PACK",
        # Ray shows a process those GPUs alone that it asks for.
        ray_actor_options={
            "num_cpus": bundles[0]["CPU"],
            "num_gpus": bundles[0].get("GPU", 0),
        },
        **HEALTH,
    )
    return deployment(GroupReplica).bind(launch, name)


def router_application(
    config: FabricConfig, launch: Launch, *groups: serve.Application
) -> serve.Application:
    """One replica on the head node, whose address clients know, or several on as many nodes.

    Groups given here are deployed with it.
    """
    is_alone = config.router.num_replicas == 1
    deployment = serve.deployment(
        name="router",
        num_replicas=config.router.num_replicas,
        max_replicas_per_node=1,
        ray_actor_options={"num_cpus": 0, "resources": ON_HEAD if is_alone else {}},
        **HEALTH,
    )
    return deployment(RouterReplica).bind(launch, *groups)
