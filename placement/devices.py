"""Devices known by their numbers, and how they are connected."""

from dataclasses import dataclass

from fabric.core.plan import ParallelConfig


@dataclass(frozen=True, slots=True)
class Link:
    """A connection between devices: a message takes ``latency_s`` and then its bytes."""

    bytes_per_s: float
    latency_s: float


@dataclass(frozen=True, slots=True)
class DeviceType:
    """One kind of device.

    ``flops_per_s`` are dense, of 16-bit matrices; ``bytes_per_s`` is the memory's. ``inside``
    connects devices of a node, ``outside`` those of different nodes. ``host_bytes_per_s`` is from
    the node's memory to a device, ``disk_bytes_per_s`` from its disk to its memory.
    ``price_per_hour`` only ranks types against each other. ``matrix_bits`` are the fewest that its
    matrix units multiply by, at a rate that grows as bits shrink from 16.
    """

    name: str
    flops_per_s: float
    bytes_per_s: float
    memory_bytes: int
    inside: Link
    outside: Link
    devices_per_node: int
    host_bytes_per_s: float
    disk_bytes_per_s: float
    price_per_hour: float
    matrix_bits: int = 16

    def matrix_flops_per_s(self, weight_bits: int) -> float:
        """Operations a second of matrices whose numbers have so many bits."""
        return self.flops_per_s * 16 / max(min(weight_bits, 16), min(self.matrix_bits, 16))


@dataclass(frozen=True, slots=True)
class GroupConfig:
    """Devices of one type, and how models are cut over them."""

    device: str
    parallel: ParallelConfig

    @property
    def num_devices(self) -> int:
        """Devices that a group of this kind takes."""
        return self.parallel.num_devices

    def __str__(self) -> str:
        return f"{self.device} pp{self.parallel.pipeline} tp{self.parallel.tensor}"


@dataclass(frozen=True, slots=True)
class Inventory:
    """How many devices there are of each type, by the type's name."""

    types: tuple[DeviceType, ...]
    counts: tuple[int, ...]

    @property
    def num_devices(self) -> int:
        """All of them."""
        return sum(self.counts)
