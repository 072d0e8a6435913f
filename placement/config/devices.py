"""What the planner's input says about devices."""

from pydantic import ByteSize

from placement.config.values import Count, Name, NotNegative, Positive, Section
from placement.devices import DeviceType, Link


class DeviceSection(Section):
    """How many devices of a type there are; the type's name is of the catalog, or of the input."""

    type: Name
    count: Count


class LinkSection(Section):
    """A connection between devices."""

    bytes_per_s: Positive
    latency_s: NotNegative = 0.0

    def link(self) -> Link:
        """The same as the planner knows it."""
        return Link(self.bytes_per_s, self.latency_s)


class DeviceTypeSection(Section):
    """A device known by its numbers, as :class:`placement.devices.DeviceType` explains."""

    flops_per_s: Positive
    bytes_per_s: Positive
    memory: ByteSize
    inside: LinkSection
    outside: LinkSection
    devices_per_node: Count = 8
    host_bytes_per_s: Positive = 20e9
    disk_bytes_per_s: Positive = 2e9
    price_per_hour: NotNegative = 1.0

    def device_type(self, name: str) -> DeviceType:
        """The same as the planner knows it."""
        return DeviceType(
            name=name,
            flops_per_s=self.flops_per_s,
            bytes_per_s=self.bytes_per_s,
            memory_bytes=int(self.memory),
            inside=self.inside.link(),
            outside=self.outside.link(),
            devices_per_node=self.devices_per_node,
            host_bytes_per_s=self.host_bytes_per_s,
            disk_bytes_per_s=self.disk_bytes_per_s,
            price_per_hour=self.price_per_hour,
        )
