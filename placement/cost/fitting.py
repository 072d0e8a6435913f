"""Fits the constants of devices to what was measured on them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, TypeVar

import numpy as np

from fabric.core.errors import ConfigError
from placement.cost.calibration import Calibration
from placement.workload.trace import FloatArray

Row = TypeVar("Row")

FITTED: Final = (
    "matrix_efficiency",
    "memory_efficiency",
    "link_efficiency",
    "layer_s",
    "sequence_s",
)
"""The constants that are fitted unless others are asked for: five."""
_BOUNDS: Final = {
    "matrix_efficiency": (0.05, 1.0),
    "memory_efficiency": (0.05, 1.0),
    "link_efficiency": (0.02, 1.0),
    "layer_s": (1e-7, 2e-3),
    "sequence_s": (1e-8, 1e-2),
    "iteration_s": (1e-6, 0.5),
}
_USUAL_ERROR: Final = 0.05


def fit(
    rows: Sequence[Row],
    predicted_s: Callable[[Row, Calibration], float],
    measured_s: Callable[[Row], float],
    start: Calibration | None = None,
    free: tuple[str, ...] = FITTED,
    pull: float = 0.0,
) -> Calibration:
    """The constants with which predictions come closest to what was measured.

    Least squares of the logarithm of their ratio, so that short and long times count alike;
    beyond a usual error only in proportion, so that few odd rows can't bend all others.

    Args:
        rows: What was measured, in any form.
        predicted_s: Seconds of a row under given constants.
        measured_s: Seconds of a row.
        start: Where to begin; the constants that aren't free stay as they are there.
        free: Names of the constants to fit.
        pull: What holds constants to where they begin: with 0.1, one that doubles weighs as much
            as a row that is 7 % off. Of use where few rows leave constants open.

    Raises:
        ConfigError: There are fewer rows than constants.
    """
    # It takes longer to import than most plans take, which fit nothing.
    from scipy.optimize import least_squares

    begin = start or Calibration()
    if len(rows) < len(free):
        raise ConfigError(f"{len(rows)} rows were measured; {len(free)} constants need as many")
    measured = np.log([measured_s(row) for row in rows])
    low, high = (np.log([_BOUNDS[name][end] for name in free]) for end in (0, 1))
    middle = np.clip(np.log([max(getattr(begin, name), 1e-9) for name in free]), low, high)

    def errors(logarithms: FloatArray) -> FloatArray:
        tried = _with(begin, free, logarithms)
        errors_s = np.log([predicted_s(row, tried) for row in rows]) - measured
        return np.concatenate([errors_s, pull * (logarithms - middle)])

    found = least_squares(
        errors, middle, bounds=(low, high), loss="soft_l1", f_scale=_USUAL_ERROR, max_nfev=100
    )
    return _with(begin, free, found.x)


def _with(begin: Calibration, free: tuple[str, ...], logarithms: FloatArray) -> Calibration:
    numbers = np.exp(logarithms)
    values = {
        name: min(float(value), _BOUNDS[name][1]) for name, value in zip(free, numbers, strict=True)
    }
    return replace(begin, **values)
