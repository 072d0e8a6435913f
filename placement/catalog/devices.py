"""Devices that can be had, by their data sheets, and those that a user describes.

Sources: NVIDIA's data sheets (dense 16-bit rates, one direction of links); delays of links and
rates of copies are usual measurements, not sheets; prices are approximate list prices an hour on
demand of large clouds in 2025, and only rank types against each other.
"""

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Final

from fabric.core.errors import ConfigError
from placement.devices import DeviceType, Link

GIB = 1 << 30
PCIE4 = Link(25e9, 10e-6)
PCIE5 = Link(50e9, 10e-6)
INFINIBAND_100 = Link(11e9, 8e-6)
INFINIBAND_200 = Link(23e9, 6e-6)
INFINIBAND_400 = Link(46e9, 5e-6)


def _nvlink(bytes_per_s: float) -> Link:
    return Link(bytes_per_s, 4e-6)


_KNOWN: Final = (
    DeviceType(
        "v100-16", 125e12, 900e9, 16 * GIB, _nvlink(150e9), INFINIBAND_100, 8, 11e9, 2e9, 3.06
    ),
    DeviceType(
        "v100-32", 125e12, 900e9, 32 * GIB, _nvlink(150e9), INFINIBAND_100, 8, 11e9, 2e9, 3.90
    ),
    DeviceType(
        "a100-40", 312e12, 1555e9, 40 * GIB, _nvlink(300e9), INFINIBAND_200, 8, 24e9, 3e9, 2.75
    ),
    DeviceType(
        "a100-80", 312e12, 2039e9, 80 * GIB, _nvlink(300e9), INFINIBAND_200, 8, 24e9, 3e9, 3.43
    ),
    DeviceType(
        "h100", 989e12, 3350e9, 80 * GIB, _nvlink(450e9), INFINIBAND_400, 8, 50e9, 6e9, 6.88, 8
    ),
    DeviceType(
        "h200", 989e12, 4800e9, 141 * GIB, _nvlink(450e9), INFINIBAND_400, 8, 50e9, 6e9, 7.91, 8
    ),
    DeviceType(
        "b200", 2250e12, 8000e9, 180 * GIB, _nvlink(900e9), INFINIBAND_400, 8, 50e9, 6e9, 14.24, 4
    ),
    DeviceType("l4", 121e12, 300e9, 24 * GIB, PCIE4, INFINIBAND_100, 8, 24e9, 2e9, 0.80, 8),
    DeviceType("l40s", 362e12, 864e9, 48 * GIB, PCIE4, INFINIBAND_100, 8, 24e9, 2e9, 1.86, 8),
    DeviceType("rtx-3090", 71e12, 936e9, 24 * GIB, PCIE4, INFINIBAND_100, 4, 24e9, 2e9, 0.44),
    # Processes of a server, with two cores each and a share of its memory; measure the real ones:
    # see placement.cost.processor.
    DeviceType(
        "cpu", 0.1e12, 15e9, 8 * GIB, Link(2e9, 50e-6), INFINIBAND_100, 8, 5e9, 1e9, 0.10, 32
    ),
)
_BY_NAME: Final = {known.name: known for known in _KNOWN}
_ALIASES: Final = {
    "a100": "a100-80",
    "a100-40gb": "a100-40",
    "a100-80gb": "a100-80",
    "v100": "v100-16",
    "h100-sxm": "h100",
    "h200-sxm": "h200",
    "b200-sxm": "b200",
}


def device(name: str) -> DeviceType:
    """A device type, by its name in any case.

    Raises:
        ConfigError: There is none of that name; names those that there are.
    """
    plain = name.lower().replace("_", "-")
    found = _BY_NAME.get(_ALIASES.get(plain, plain))
    if found is None:
        raise ConfigError(f"no device is called {name!r}; known are {', '.join(_BY_NAME)}")
    return found


def device_names() -> tuple[str, ...]:
    """The device types that are known."""
    return tuple(_BY_NAME)


def device_from_mapping(name: str, values: Mapping[str, object]) -> DeviceType:
    """A device type that a configuration describes.

    Args:
        name: What it is called; also where errors say that a key is.
        values: Fields of :class:`DeviceType`; links are mappings of their own. ``like`` names a
            known type, whose values stand for those that are left out.

    Raises:
        ConfigError: A key is unknown, missing, or its value is no positive number.
    """
    given = dict(values)
    like = given.pop("like", None)
    if like is not None and not isinstance(like, str):
        raise ConfigError(f"{name}.like is {like!r}; the name of a known device is needed")
    base = device(like) if isinstance(like, str) else None
    allowed = [field for field in fields(DeviceType) if field.name != "name"]
    _check_keys(name, given, ["like", *(field.name for field in allowed)])
    links = {
        key: _link(f"{name}.{key}", given.get(key), getattr(base, key) if base else None)
        for key in ("inside", "outside")
    }
    numbers = {}
    for field in allowed:
        if field.name in links:
            continue
        default = getattr(base, field.name) if base else field.default
        numbers[field.name] = _number(f"{name}.{field.name}", given.get(field.name, default))
    return DeviceType(
        name=name,
        flops_per_s=numbers["flops_per_s"],
        bytes_per_s=numbers["bytes_per_s"],
        memory_bytes=int(numbers["memory_bytes"]),
        inside=links["inside"],
        outside=links["outside"],
        devices_per_node=int(numbers["devices_per_node"]),
        host_bytes_per_s=numbers["host_bytes_per_s"],
        disk_bytes_per_s=numbers["disk_bytes_per_s"],
        price_per_hour=numbers["price_per_hour"],
        matrix_bits=int(numbers["matrix_bits"]),
    )


def _link(where: str, given: object, base: Link | None) -> Link:
    if given is None and base is not None:
        return base
    if not isinstance(given, Mapping):
        raise ConfigError(f"{where} is {given!r}; bytes_per_s and latency_s are needed")
    _check_keys(where, given, ["bytes_per_s", "latency_s"])
    latency_s = given.get("latency_s", 0.0)
    is_zero = isinstance(latency_s, int | float) and latency_s == 0
    return Link(
        _number(f"{where}.bytes_per_s", given.get("bytes_per_s", MISSING)),
        0.0 if is_zero else _number(f"{where}.latency_s", latency_s),
    )


def _check_keys(where: str, given: Mapping[str, object], allowed: list[str]) -> None:
    for key in given:
        if key not in allowed:
            raise ConfigError(f"{where}.{key} is unknown; allowed: {', '.join(allowed)}")


def _number(where: str, value: object) -> float:
    if value is MISSING:
        raise ConfigError(f"{where} is missing; a positive number is needed")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ConfigError(f"{where} is {value!r}; a positive number is needed")
    return float(value)
