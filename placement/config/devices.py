"""What the planner's input says about devices."""

from typing import Self

from pydantic import ByteSize, model_validator

from fabric.core.errors import ConfigError
from placement.catalog.devices import device_from_mapping
from placement.config.values import Count, Name, NotNegative, Positive, Section
from placement.devices import DeviceType


class DeviceSection(Section):
    """How many devices of a type there are; the type's name is of the catalog, or of the input."""

    type: Name
    count: Count


class LinkSection(Section):
    """A connection between devices."""

    bytes_per_s: Positive
    latency_s: NotNegative = 0.0


class DeviceTypeSection(Section):
    """A device known by its numbers, as :class:`placement.devices.DeviceType` explains.

    ``like`` names one of the catalog, whose numbers stand for those that are left out.
    """

    like: Name | None = None
    flops_per_s: Positive | None = None
    bytes_per_s: Positive | None = None
    memory: ByteSize | None = None
    inside: LinkSection | None = None
    outside: LinkSection | None = None
    devices_per_node: Count | None = None
    host_bytes_per_s: Positive | None = None
    disk_bytes_per_s: Positive | None = None
    price_per_hour: Positive | None = None
    matrix_bits: Count | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        try:
            self.device_type("")
        except ConfigError as error:
            problem = error.message.removeprefix(".").replace("memory_bytes", "memory")
            raise ValueError(problem) from error
        return self

    def device_type(self, name: str) -> DeviceType:
        """The same as the planner knows it."""
        values = self.model_dump(exclude_none=True)
        if "memory" in values:
            values["memory_bytes"] = int(values.pop("memory"))
        return device_from_mapping(name, values)
