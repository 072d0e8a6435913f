"""Reads measured prefill and decode times in the form that MuxServe publishes.

The file is JSON: model, GPUs, share of each GPU's processors in percent, sequences of a batch,
tokens of each, and milliseconds of ``prefill`` and ``decoding``; -1 where memory didn't suffice.
Source: MuxServe (Duan et al., ICML 2024).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from fabric.core.plan import ParallelConfig
from fabric.core.profile import Profile
from placement.cost.calibrations import calibration
from placement.cost.iteration import Roofline
from placement.cost.json_tree import count_at, mapping_at, number_at, parse_json
from placement.cost.roofline import roofline_cost
from placement.cost.sizes import is_divisible
from placement.cost.tables import TableEntry
from placement.devices import DeviceType, GroupConfig
from placement.shape import ModelShape

WHOLE_DEVICE: Final = "100"
Times = dict[tuple[int, int], tuple[float, float]]
"""Seconds of prefill and decode, by sequences and tokens of each."""


def read_muxserve(
    text: str, shapes: Mapping[str, ModelShape], device: DeviceType, origin: str = "table"
) -> tuple[TableEntry, ...]:
    """The entries of a file for models whose sizes are given, each on whole devices.

    Args:
        text: The file's content.
        shapes: Sizes of models, by the names that the file gives them; others are left out.
        device: What was measured.
        origin: What errors call the file.

    Raises:
        ConfigError: The file has another form.
    """
    entries = []
    for model, by_devices in parse_json(text, origin).items():
        shape = shapes.get(model)
        if shape is None:
            continue
        for devices, by_share in mapping_at(by_devices, f"{origin}: {model}").items():
            where = f"{origin}: {model}.{devices}"
            times = _times(mapping_at(by_share, where).get(WHOLE_DEVICE), where)
            parallel = ParallelConfig(tensor=count_at(devices, f"{origin}: {model}"))
            if times and is_divisible(shape, parallel):
                entries.append(_entry(model, shape, device, parallel, times))
    return tuple(entries)


def _entry(
    model: str, shape: ModelShape, device: DeviceType, parallel: ParallelConfig, times: Times
) -> TableEntry:
    reckoned = roofline_cost(Roofline(shape, device, parallel, calibration(device.name)))
    contexts = sorted({length for _, length in times})
    batches = [
        size
        for size in sorted({size for size, _ in times})
        if all((size, length) in times for length in contexts)
    ]
    # Longer prompts than the longest are taken for batches of it with as many tokens.
    prefill = {length: times[1, length][0] for length in contexts}
    prefill |= {size * contexts[-1]: times[size, contexts[-1]][0] for size in batches}
    decode = tuple(
        (size, length, times[size, length][1]) for size in batches for length in contexts
    )
    profile = Profile(
        tuple(sorted(prefill.items())),
        decode,
        reckoned.profile.copies,
        reckoned.profile.block_bytes,
    )
    cost = replace(reckoned, profile=profile, overhead_s=0.0)
    return TableEntry(model, GroupConfig(device.name, parallel), cost)


def _times(tree: object, where: str) -> Times:
    times: Times = {}
    for size, by_length in mapping_at(tree, where).items():
        for length, both in mapping_at(by_length, f"{where}.{size}").items():
            phases = mapping_at(both, f"{where}.{size}.{length}")
            prefill_ms, decode_ms = (
                number_at(phases.get(name), f"{where}.{size}.{length}.{name}")
                for name in ("prefill", "decoding")
            )
            if prefill_ms > 0 and decode_ms > 0:
                times[count_at(size, where), count_at(length, where)] = (
                    prefill_ms / 1e3,
                    decode_ms / 1e3,
                )
    return times
