"""Cuts a model into pipeline stages over devices: the level between operators."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fabric.core.errors import ConfigError
from placement import _native
from placement.parallelize.front import Front, PipelinePlan, StagePlan
from placement.parallelize.stage import MeshShape, StageCosts
from placement.parallelize.stages_table import StageOptions, to_ticks
from placement.parallelize.stages_transfer import FREE, Transfer

_MOST_BYTES = 2**62


@dataclass(frozen=True, slots=True)
class PipelineSpace:
    """Which pipelines may be chosen.

    Attributes:
        num_devices: All of them are used.
        devices_per_node: Stages follow one another over the nodes; a stage within a node lies
            across no two, and a larger one has whole nodes.
        meshes: What a stage may have; empty: all of :func:`submeshes`.
        max_stages: None: as many as there are devices.
        memory_bytes: Of each device; None: what the stages' costs say.
        inside: What it takes to receive from a stage of the same node.
        outside: And from one of another.
        has_equal_layers: A stage's cost depends only on how many layers it has, and whether it
            is the first or the last: costs are asked for once for each of these.
        tolerance: Of plans whose slowest stage or bytes differ by less than this share, one of
            the least latency will do. At 0 the front has every plan.
    """

    num_devices: int
    devices_per_node: int = 8
    meshes: tuple[MeshShape, ...] = ()
    max_stages: int | None = None
    memory_bytes: int | None = None
    inside: Transfer = FREE
    outside: Transfer = FREE
    has_equal_layers: bool = True
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        for name in ("num_devices", "devices_per_node"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; at least 1 is needed")
        if self.max_stages is not None and self.max_stages < 1:
            raise ConfigError(f"max_stages is {self.max_stages}; at least 1 is needed")
        if not 0.0 <= self.tolerance < 1.0:
            raise ConfigError(f"tolerance is {self.tolerance}; from 0 to less than 1 is allowed")
        for mesh in self.meshes:
            if mesh.num_devices > self.devices_per_node and (
                mesh.num_devices % self.devices_per_node
            ):
                raise ConfigError(
                    f"{mesh} is neither within a node of {self.devices_per_node} devices nor "
                    "made of whole ones"
                )


def submeshes(num_devices: int, devices_per_node: int) -> tuple[MeshShape, ...]:
    """Meshes that a stage may have: powers of two within a node, then as many full nodes.

    Source: Alpa (Zheng et al., OSDI 2022), section 5.2.
    """
    inside = min(num_devices, devices_per_node)
    sizes = [2**i for i in range(inside.bit_length()) if devices_per_node % 2**i == 0]
    if devices_per_node <= num_devices and devices_per_node not in sizes:
        sizes.append(devices_per_node)
    num_nodes = num_devices // devices_per_node
    nodes = [2**i for i in range(1, num_nodes.bit_length())]
    return (
        *(MeshShape(1, size) for size in sizes),
        *(MeshShape(count, devices_per_node) for count in nodes),
    )


def parallelize(costs: StageCosts, space: PipelineSpace) -> Front:
    """Find every pipeline over all devices that no other beats; exact.

    Compared are the latency (all stages, and what lies between them), the slowest stage and the
    bytes of the fullest device. One is kept of those that are equal in all three to the
    picosecond. The front is empty if nothing fits.

    Source: Alpa (Zheng et al., OSDI 2022), section 5.2; AlpaServe (Li et al., OSDI 2023), section
    4.1, which looks for the slowest stage alone.
    """
    meshes = space.meshes or submeshes(space.num_devices, space.devices_per_node)
    options = StageOptions(costs, meshes, space.has_equal_layers)
    num_stages = min(space.num_devices, costs.num_layers)
    table = _native.StageTable(
        num_layers=costs.num_layers,
        num_devices=space.num_devices,
        devices_per_node=space.devices_per_node,
        max_stages=min(space.max_stages or num_stages, num_stages),
        mesh_devices=np.array([mesh.num_devices for mesh in meshes], np.int32),
        classes=options.classes(),
        offsets=options.offsets(),
        ticks=options.ticks(),
        stage_bytes=options.bytes(),
        inside_ticks=to_ticks(space.inside.seconds),
        outside_ticks=to_ticks(space.outside.seconds),
    )
    budget = _MOST_BYTES if space.memory_bytes is None else space.memory_bytes
    found = _native.pareto_pipelines(table, budget, space.tolerance)
    plans = (_plan(stages, options, space) for stages in found)
    return Front(tuple(sorted(plans, key=lambda plan: (to_ticks(plan.latency_s), plan.slowest_s))))


def _plan(
    stages: Sequence[tuple[int, int, int, int]], options: StageOptions, space: PipelineSpace
) -> PipelinePlan:
    planned: list[StagePlan] = []
    device = 0
    for first, end, mesh, option in stages:
        cost = options.of(mesh, first, end)[option]
        is_outside = device % space.devices_per_node == 0
        receive = space.outside if is_outside else space.inside
        shape = options.meshes[mesh]
        planned.append(StagePlan(first, end, shape, device, cost, receive if device else FREE))
        device += shape.num_devices
    return PipelinePlan(tuple(planned))
