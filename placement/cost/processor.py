"""Measures the processor that this runs on, so that it can stand among the known devices."""

import os
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from placement.catalog.devices import device
from placement.devices import DeviceType

_SIDE = 768
_COPIED_BYTES = 128 << 20
_NUM_REPEATS = 5


def measured_processor(name: str = "cpu") -> DeviceType:
    """This machine's processor, all the cores that the process may use taken as one device.

    Takes about a second. Rates are the best of a few: of a product of matrices of 32-bit numbers,
    and of a copy, whose bytes are read and written. Prices, links and disks are the catalog's.

    Args:
        name: What the device type is called.
    """
    left = np.ones((_SIDE, _SIDE), np.float32)
    product = np.empty_like(left)
    product_s = _best_s(lambda: np.matmul(left, left, out=product))
    source = np.ones(_COPIED_BYTES // 8)
    target = np.empty_like(source)
    copy_s = _best_s(lambda: np.copyto(target, source))
    bytes_per_s = 2 * _COPIED_BYTES / copy_s
    return replace(
        device("cpu"),
        name=name,
        flops_per_s=2 * _SIDE**3 / product_s,
        bytes_per_s=bytes_per_s,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        # Weights that are in the host's memory are copied within it.
        host_bytes_per_s=bytes_per_s / 2,
    )


def _best_s(action: Callable[[], object]) -> float:
    action()
    times = []
    for _ in range(_NUM_REPEATS):
        begun = time.perf_counter()
        action()
        times.append(time.perf_counter() - begun)
    return min(times)
