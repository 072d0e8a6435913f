"""Costs out of measured closed loops: a roofline that is bent to them."""

from collections.abc import Mapping, Sequence
from typing import Final

from placement.cost.aiconfigurator_rows import LoopRow
from placement.cost.calibration import Calibration
from placement.cost.calibrations import calibration
from placement.cost.closed_loop import LoopTimes, loop_times
from placement.cost.fitting import fit
from placement.cost.iteration import Roofline
from placement.cost.roofline import roofline_cost
from placement.cost.tables import TableEntry
from placement.devices import DeviceType, GroupConfig

# What engines leave for weights and KV: 90 % of the memory is what vLLM takes unless told
# otherwise, and what activations and graphs take of it is about so much.
MEMORY_SHARE: Final = 0.9
RESERVED_BYTES: Final = 6 << 30
PULL: Final = 0.2
# The constants that few rows tell most about come first.
_BY_WEIGHT: Final = (
    "memory_efficiency",
    "matrix_efficiency",
    "layer_s",
    "sequence_s",
    "link_efficiency",
)


def entries_of(
    rows: Sequence[LoopRow], devices: Mapping[str, DeviceType]
) -> tuple[TableEntry, ...]:
    """The cost of each model and configuration that has rows, at each of its precisions.

    Rows say what a loop took on average, not an iteration; and only at some batches and lengths.
    So the roofline's constants are fitted to the rows of each configuration, as many of them as
    there are rows, and the entry is what the roofline then says. Models are named as in the
    catalog, with ``-fp8`` or ``-fp4`` behind it where weights have 8 or 4 bits.
    """
    found: dict[tuple[str, GroupConfig], list[LoopRow]] = {}
    for row in rows:
        if row.device in devices:
            suffix = "" if row.shape.weight_bits == 16 else f"-fp{row.shape.weight_bits}"
            key = row.shape.name + suffix, GroupConfig(row.device, row.parallel)
            found.setdefault(key, []).append(row)
    return tuple(
        TableEntry(model, config, roofline_cost(_fitted(mine, devices[config.device])))
        for (model, config), mine in found.items()
    )


def predicted_times(row: LoopRow, device: DeviceType, constants: Calibration) -> LoopTimes:
    """What the roofline says of a row's loop."""
    memory_bytes = int(MEMORY_SHARE * device.memory_bytes) - RESERVED_BYTES
    roofline = Roofline(row.shape, device, row.parallel, constants)
    return loop_times(roofline, row.loop, memory_bytes)


def _fitted(rows: Sequence[LoopRow], device: DeviceType) -> Roofline:
    allowed = [name for name in _BY_WEIGHT if rows[0].parallel.tensor > 1 or name[:4] != "link"]
    constants = fit(
        rows,
        lambda row, tried: predicted_times(row, device, tried).tpot_s,
        lambda row: row.tpot_s,
        calibration(device.name),
        tuple(allowed[: len(rows)]),
        PULL,
    )
    # Engines differ in the bits of KV: the most that any of them needs.
    shape = max((row.shape for row in rows), key=lambda shape: shape.kv_bits)
    return Roofline(shape, device, rows[0].parallel, constants)
