"""Constants of device types, fitted to what was measured on them.

Sources: TPOT of dense models on H100, H200 and B200 as NVIDIA AIConfigurator publishes it
(tests/perf/aiconfigurator.py fits it again); prefill and decode of LLaMA on A100 as MuxServe does.
"""

from typing import Final

from placement.cost.calibration import Calibration

_KNOWN: Final = {
    "h100": Calibration(0.655, 0.944, 0.471, 59.2e-6, 23.2e-6),
    "h200": Calibration(0.614, 0.905, 0.863, 50.7e-6, 28.7e-6),
    "b200": Calibration(0.547, 0.916, 0.457, 58.2e-6, 18.8e-6),
}


def calibration(device: str) -> Calibration:
    """The constants of a device type of the catalog; usual ones where nothing was measured."""
    return _KNOWN.get(device, Calibration())


def calibrations() -> dict[str, Calibration]:
    """All that were fitted, by the device's name."""
    return dict(_KNOWN)
