"""Shard workers as Ray actors, one on each device bundle of the group's placement group."""

import logging
import os
from typing import Any

import ray
from ray.util.placement_group import placement_group_table
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from fabric.config import GroupSection
from fabric.engine.shard_worker import ShardSettings, run_shard
from fabric.parallel.mesh import Device
from fabric.telemetry.logs import setup_logging

logger = logging.getLogger(__name__)

# Bundle 0 is the driver's.
FIRST_DEVICE_BUNDLE = 1
DRIVER_CPUS = 0.1


def device_bundle(group: GroupSection) -> dict[str, float]:
    """The Ray resources of one device of a group."""
    return {"CPU": group.num_cpus, **group.resources}


def group_bundles(group: GroupSection) -> list[dict[str, float]]:
    """The bundles of a group's placement group: the driver's, then one for each device.

    A group of one device has its worker in the driver's process, and so one bundle.
    """
    num_devices = group.parallel.pipeline * group.parallel.tensor
    if num_devices == 1:
        return [device_bundle(group)]
    return [{"CPU": DRIVER_CPUS}, *[device_bundle(group)] * num_devices]


def stage_order(nodes: tuple[str, ...], tensor: int) -> tuple[int, ...]:
    """Which device each rank gets, so that as many stages as possible are on one node.

    Args:
        nodes: Where each device is, in the order of Ray's bundles, which can be any.
        tensor: Ranks in a stage; neighbours in the order of the ranks.

    Returns:
        An index into ``nodes`` for each rank: whole stages node by node, then what is left.
    """
    by_node: dict[str, list[int]] = {}
    for index, node in enumerate(nodes):
        by_node.setdefault(node, []).append(index)
    whole, left = [], []
    for devices in by_node.values():
        num_whole = len(devices) // tensor * tensor
        whole += devices[:num_whole]
        left += devices[num_whole:]
    return (*whole, *left)


class ShardActor:
    """A Ray actor that is one shard worker."""

    def run(self, settings: ShardSettings, log_level: str) -> None:
        """Be a worker until the driver ends; then end too, whether or not Ray can be reached."""
        setup_logging(log_level)
        try:
            run_shard(settings)
        except Exception:
            logger.exception("rank %d fails", settings.rank)
        finally:
            # An idle actor would hold the device's memory until Ray hears of its owner's death.
            os._exit(0)


class RayShardHost:
    """Shard workers on the bundles of the placement group that this replica is in.

    The actors belong to this process: they end when it does, however it ends.
    """

    def __init__(self, group: GroupSection, log_level: str) -> None:
        self._resources = device_bundle(group)
        self._log_level = log_level
        self._actors: list[Any] = []
        self._runs: list[Any] = []
        placement = ray.util.get_current_placement_group()
        assert placement is not None
        self._placement = placement
        self._nodes: dict[int, str] = placement_group_table(placement)["bundles_to_node_id"]
        nodes = [self._nodes[b] for b in range(FIRST_DEVICE_BUNDLE, len(self._nodes))]
        places = stage_order(tuple(nodes), group.parallel.tensor)
        self._bundles = tuple(FIRST_DEVICE_BUNDLE + place for place in places)

    def devices(self) -> tuple[Device, ...]:
        """A device for each rank, on the host that Ray placed its bundle on."""
        addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
        hosts = [addresses[self._nodes[bundle]] for bundle in self._bundles]
        return tuple(Device(host, hosts[:rank].count(host)) for rank, host in enumerate(hosts))

    def start(self, settings: ShardSettings) -> None:
        """Start an actor on the rank's bundle."""
        options: dict[str, Any] = {
            "num_cpus": self._resources["CPU"],
            "resources": {k: v for k, v in self._resources.items() if k not in ("CPU", "GPU")},
            "num_gpus": self._resources.get("GPU", 0),
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                self._placement, self._bundles[settings.rank]
            ),
        }
        actor: Any = ray.remote(ShardActor).options(**options).remote()
        self._runs.append(actor.run.remote(settings, self._log_level))
        self._actors.append(actor)

    def has_ended(self) -> bool:
        """Whether an actor's run is over, however it ended."""
        return bool(ray.wait(self._runs, timeout=0)[0])

    def stop(self) -> None:
        """Kill the actors."""
        for actor in self._actors:
            ray.kill(actor)
