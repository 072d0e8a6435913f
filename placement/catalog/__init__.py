"""Models and devices that are known by name."""

from placement.catalog.devices import device, device_from_mapping, device_names
from placement.catalog.hf import shape_from_file, shape_from_hf
from placement.catalog.shapes import shape, shape_names

__all__ = [
    "device",
    "device_from_mapping",
    "device_names",
    "shape",
    "shape_from_file",
    "shape_from_hf",
    "shape_names",
]
