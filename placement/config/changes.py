"""The same input with one thing changed: what sweeps and what-ifs ask for."""

from collections.abc import Iterable
from pathlib import Path
from typing import get_args

from fabric.core.errors import ConfigError
from placement.catalog import device
from placement.config.models import ModelSection, ObjectivesSection
from placement.config.schema import PlanInput
from placement.config.workload import TraceFormat, TraceSection, WorkloadSection

QUANTITIES = ("devices", "rate", "cv", "slo")
LIMITS = ("ttft_s", "tpot_s", "e2e_s")
# Of what the input has, but for cv, which is by itself.
_STEPS = {
    "devices": (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0),
    "rate": (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0),
    "cv": (0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0),
    "slo": (0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0),
}


def changed(inputs: PlanInput, quantity: str, value: float) -> PlanInput:
    """The input with another number of devices, rate, burstiness, or scale of objectives.

    Args:
        inputs: Stays as it is.
        quantity: ``devices`` (of the only type), a device type's name, ``rate``, ``cv`` or ``slo``.
        value: How many devices, or the cv, or by how much rates or objectives are multiplied.

    Raises:
        ConfigError: There is no such quantity, or it can't have that value.
    """
    types = [device.type for device in inputs.devices]
    # Tables show the catalog's name of what an input may call by another one.
    spellings = {_catalog_name(inputs, name): name for name in types}
    quantity = spellings.get(quantity, quantity)
    if quantity not in (*QUANTITIES, *types):
        allowed = (*QUANTITIES, *types)
        raise ConfigError(f"{quantity}: can't be changed; allowed: {', '.join(allowed)}")
    if not value > 0:
        raise ConfigError(f"{quantity} is {value:g}; more than 0 is needed")
    if quantity == "rate":
        scale = inputs.workload.rate_scale * value
        return _with_workload(inputs, inputs.workload.model_copy(update={"rate_scale": scale}))
    if quantity == "cv":
        return _with_workload(inputs, _with_cv(inputs.workload, value))
    if quantity == "slo":
        return _with_objectives(inputs, value)
    return _with_devices(inputs, types[0] if quantity == "devices" else quantity, value, quantity)


def _catalog_name(inputs: PlanInput, name: str) -> str:
    """What tables call a type; a name that is not known is told of where devices are looked up."""
    try:
        return name if name in inputs.device_types else device(name).name
    except ConfigError:
        return name


def sweepable(inputs: PlanInput) -> tuple[str, ...]:
    """The quantities that this input can be swept over."""
    return tuple(quantity for quantity in QUANTITIES if _can_change(inputs, quantity))


def _can_change(inputs: PlanInput, quantity: str) -> bool:
    try:
        changed(inputs, quantity, 1.0)
    except ConfigError:
        return False
    return True


def with_trace(inputs: PlanInput, kind: str, path: Path) -> PlanInput:
    """The input with all requests of a trace instead of its own arrivals: none is held out.

    Raises:
        ConfigError: There is no such file, or no such kind of trace.
    """
    if kind not in get_args(TraceFormat):
        raise ConfigError(f"{kind}: is no trace; allowed: {', '.join(get_args(TraceFormat))}")
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such file")
    trace = TraceSection.model_validate({"path": path, "format": kind, "train_share": 1.0})
    update = {"arrivals": "trace", "trace": trace, "cv": None, "states": None}
    return _with_workload(inputs, inputs.workload.model_copy(update=update))


def usual_values(inputs: PlanInput, quantity: str) -> tuple[float, ...]:
    """Values around the input's own, to see where it stands.

    Raises:
        ConfigError: There is no such quantity.
    """
    if quantity not in _STEPS:
        raise ConfigError(f"{quantity}: can't be swept; allowed: {', '.join(_STEPS)}")
    if quantity != "devices":
        return _STEPS[quantity]
    return _whole(inputs.num_devices * step for step in _STEPS["devices"])


def _whole(counts: Iterable[float]) -> tuple[float, ...]:
    return tuple(sorted({float(max(1, round(count))) for count in counts}))


def _with_devices(inputs: PlanInput, kind: str, value: float, quantity: str) -> PlanInput:
    if quantity == "devices" and len(inputs.devices) > 1:
        types = ", ".join(device.type for device in inputs.devices)
        raise ConfigError(f"devices: there are several types; name one of {types}")
    if value != int(value):
        raise ConfigError(f"{quantity} is {value:g}; a whole number is needed")
    devices = [
        device.model_copy(update={"count": int(value)}) if device.type == kind else device
        for device in inputs.devices
    ]
    return inputs.model_copy(update={"devices": devices})


def _with_workload(inputs: PlanInput, workload: WorkloadSection) -> PlanInput:
    return inputs.model_copy(update={"workload": workload})


def _with_cv(workload: WorkloadSection, value: float) -> WorkloadSection:
    if workload.arrivals in ("poisson", "gamma"):
        return workload.model_copy(update={"arrivals": "gamma", "cv": value})
    if workload.trace is not None and workload.trace.window_s is not None:
        trace = workload.trace.model_copy(update={"cv_scale": value})
        return workload.model_copy(update={"trace": trace})
    raise ConfigError(
        f"cv: workload.arrivals {workload.arrivals} has none; allowed: poisson, gamma, or a trace "
        "with window_s"
    )


def _with_objectives(inputs: PlanInput, factor: float) -> PlanInput:
    models = [_scaled(model, factor) for model in inputs.models]
    return inputs.model_copy(update={"models": models, "slo_scale": inputs.slo_scale * factor})


def _scaled(model: ModelSection, factor: float) -> ModelSection:
    given = model.objectives
    limits = {name: _times(getattr(given, name), factor) for name in LIMITS}
    objectives = ObjectivesSection(**limits, refuse_if_late=given.refuse_if_late)
    scale = _times(model.slo_scale, factor)
    return model.model_copy(update={"objectives": objectives, "slo_scale": scale})


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
