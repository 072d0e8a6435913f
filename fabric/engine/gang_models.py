"""A model as the ranks of a gang know it, put together."""

from collections.abc import Sequence
from dataclasses import replace

from fabric.engine.executor import HostedModel
from fabric.kv.transfer import ParkingSpace


def whole_model(parts: Sequence[HostedModel]) -> HostedModel:
    """One model from each rank's shard of it.

    Memory is planned for the rank that takes most of it, and blocks are parked on all ranks, so
    that each has room for as many as the one with least. ``host_bytes`` and the ``block_bytes``
    of the space are the ranks' together.
    """
    spaces = [part.space for part in parts]
    return replace(
        parts[0],
        weight_bytes=max(part.weight_bytes for part in parts),
        host_bytes=sum(part.host_bytes for part in parts),
        block_bytes=max(part.block_bytes for part in parts),
        space=ParkingSpace(
            min(space.num_host_slots for space in spaces),
            min(space.num_disk_slots for space in spaces),
            sum(space.block_bytes for space in spaces),
        ),
    )
