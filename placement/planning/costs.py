"""Which costs a planner's input has: those that it names files of, and a roofline for the rest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fabric.core.errors import ConfigError
from placement.config.models import ModelSection, ProfileSection
from placement.config.schema import PlanInput
from placement.cost.aiconfigurator_rows import read_loop_rows
from placement.cost.aiconfigurator_table import entries_of
from placement.cost.alpaserve_table import read_alpaserve
from placement.cost.calibration import Calibration
from placement.cost.calibrations import calibrations
from placement.cost.composite import Costs, CostSource
from placement.cost.muxserve_table import read_muxserve
from placement.cost.profiled import ProfiledCost, calibrate, read_fabric_profile
from placement.cost.roofline import RooflineCost
from placement.cost.tables import TableCost, TableEntry
from placement.devices import DeviceType
from placement.shape import ModelShape

MEASURED, TABLE, ROOFLINE = "measured", "table", "roofline"


@dataclass(frozen=True, slots=True)
class _File:
    """A file of costs, the model of ours that it is for, and the device type it was measured on."""

    section: ProfileSection
    model: ModelSection
    shape: ModelShape | None
    device: DeviceType
    prompt_tokens: int

    @property
    def name(self) -> str:
        """What the file calls the model."""
        return self.section.model or (self.shape.name if self.shape else self.model.id)


def costs_of(
    inputs: PlanInput,
    shapes: Sequence[ModelShape | None],
    types: Sequence[DeviceType],
    prompt_tokens: Sequence[int],
) -> Costs:
    """The costs of all models of an input: measured ones first, then tables, then rooflines.

    A roofline's constants are those of the device type; or, for a device type that a profile of
    the fabric was measured on, those which come closest to the first such profile.

    Args:
        inputs: What the user says.
        shapes: Of its models, if known.
        types: Of its devices.
        prompt_tokens: Of each model's mean request: what a table without lengths is taken for.

    Raises:
        ConfigError: A file can't be read, or is not of its format.
    """
    known = {
        section.id: found
        for section, found in zip(inputs.models, shapes, strict=True)
        if found is not None
    }
    measured, tables, constants = list[TableEntry](), list[TableEntry](), calibrations()
    fitted = set[str]()
    for file in _files(inputs, shapes, types, prompt_tokens):
        entries = _entries(file)
        if file.section.format != "fabric":
            tables += entries
            continue
        measured += entries
        if file.device.name not in fitted:
            constants |= {file.device.name: _calibration(file, entries[0])}
            fitted.add(file.device.name)
    roofline = RooflineCost(known, {kind.name: kind for kind in types}, constants)
    return Costs(
        (
            CostSource(MEASURED, ProfiledCost(measured)),
            CostSource(TABLE, TableCost(tables)),
            CostSource(ROOFLINE, roofline),
        )
    )


def _files(
    inputs: PlanInput,
    shapes: Sequence[ModelShape | None],
    types: Sequence[DeviceType],
    prompt_tokens: Sequence[int],
) -> list[_File]:
    by_name = {kind.name: kind for kind in types}
    return [
        _File(section, model, shape, _device(section, model.id, by_name), tokens)
        for model, shape, tokens in zip(inputs.models, shapes, prompt_tokens, strict=True)
        for section in model.profiles
    ]


def _device(section: ProfileSection, model: str, types: Mapping[str, DeviceType]) -> DeviceType:
    if section.device is None and len(types) == 1:
        return next(iter(types.values()))
    if section.device is None or section.device not in types:
        raise ConfigError(
            f"models: {model}: profiles: {section.path}: device is {section.device!r}; one of "
            f"{', '.join(types)} is needed"
        )
    return types[section.device]


def _entries(file: _File) -> list[TableEntry]:
    """What a file says, under our name of the model.

    Raises:
        ConfigError: It says nothing of the model, or is not of its format.
    """
    path = file.section.path
    found = [entry for entry in _read(file, _text(path)) if entry.model == file.name]
    if not found:
        raise ConfigError(f"{path}: has nothing of {file.name!r} on {file.device.name}")
    return [replace(entry, model=file.model.id) for entry in found]


def _read(file: _File, text: str) -> Sequence[TableEntry]:
    kind, origin = file.section.format, str(file.section.path)
    if kind == "alpaserve":
        return read_alpaserve(text, file.device, file.prompt_tokens, origin)
    if kind == "aiconfigurator":
        rows = read_loop_rows(text, origin).rows
        return entries_of(rows, {file.device.name: file.device})
    if file.shape is None:
        raise ConfigError(
            f"models: {file.model.id}: shape or config is needed beside a {kind} profile"
        )
    shape = replace(file.shape, name=file.name)
    if kind == "muxserve":
        return read_muxserve(text, {file.name: shape}, file.device, origin)
    entry = read_fabric_profile(text, shape, file.device, origin)
    _check_dtype(file, entry)
    return (entry,)


def _check_dtype(file: _File, entry: TableEntry) -> None:
    subject, wanted = entry.cost.profile.subject, file.model.dtype
    if subject is None:
        return
    if wanted not in ("auto", subject.dtype):
        raise ConfigError(
            f"{file.section.path}: was measured in {subject.dtype}; models: {file.model.id}: dtype "
            f"is {wanted}"
        )
    if subject.quantization != file.model.quantization:
        raise ConfigError(
            f"{file.section.path}: was measured with quantization {subject.quantization}; models: "
            f"{file.model.id}: quantization is {file.model.quantization}"
        )


def _calibration(file: _File, entry: TableEntry) -> Calibration:
    assert file.shape is not None, "a profile of the fabric needs a shape"
    return calibrate(entry.cost.profile, file.shape, file.device, entry.config.parallel)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't be read: {error}") from error
