"""Costs out of the files that ``fabric profile`` writes."""

from dataclasses import replace

from fabric.core.errors import ConfigError
from fabric.core.plan import ParallelConfig
from fabric.core.profile import CopySpeed, Profile
from fabric.kv.transfer import Direction, Tier
from placement.catalog.hf import DTYPE_BITS, QUANTIZED_BITS
from placement.cost.calibration import Calibration
from placement.cost.calibrations import calibration
from placement.cost.fitting import FITTED, fit
from placement.cost.iteration import Roofline, Work
from placement.cost.roofline import roofline_cost
from placement.cost.tables import TableCost, TableEntry
from placement.devices import DeviceType, GroupConfig
from placement.shape import ModelShape


class ProfiledCost(TableCost):
    """Knows what ``fabric profile`` measured: the entries of :func:`read_fabric_profile`."""


def read_fabric_profile(
    text: str, shape: ModelShape, device: DeviceType, origin: str = "profile"
) -> TableEntry:
    """What one file says, with bytes by the model's sizes.

    Times are the file's. How stages share them, and how long weights take to load, isn't measured:
    that is reckoned by a roofline. So are copies to tiers that were not there.

    Args:
        text: The file's content, with a subject: how many stages and ranks were measured.
        shape: The model's sizes; the entry has its name. Its numbers have the bits that the
            profile says.
        device: What it was measured on.
        origin: What errors call the file.

    Raises:
        ConfigError: It is no profile, or doesn't say what was measured.
    """
    profile = Profile.from_json(text, origin)
    subject = profile.subject
    if subject is None:
        raise ConfigError(f"{origin}: subject is missing; it says how the model was cut")
    parallel = ParallelConfig(subject.pipeline, subject.tensor)
    if bits := DTYPE_BITS.get(subject.dtype):
        weight_bits = QUANTIZED_BITS.get(subject.quantization, bits)
        shape = replace(shape, weight_bits=weight_bits, kv_bits=bits)
    reckoned = roofline_cost(Roofline(shape, device, parallel, calibration(device.name)))
    copies = _with_missing(profile.copies, reckoned.profile.copies)
    # A measured iteration has all that comes besides it.
    cost = replace(reckoned, profile=replace(profile, copies=copies), overhead_s=0.0)
    return TableEntry(shape.name, GroupConfig(device.name, parallel), cost)


def calibrate(
    profile: Profile, shape: ModelShape, device: DeviceType, parallel: ParallelConfig
) -> Calibration:
    """The constants with which a roofline comes closest to a profile.

    They say what other models, or other cuts of this one, would take on such a device.

    Raises:
        ConfigError: The profile has too few points.
    """
    rows = [(Work.prompts(length), seconds) for length, seconds in profile.prefill]
    rows += [(Work.decode(size, context), seconds) for size, context, seconds in profile.decode]

    def predicted_s(row: tuple[Work, float], tried: Calibration) -> float:
        return Roofline(shape, device, parallel, tried).seconds(row[0]) + tried.iteration_s

    # Without ranks to talk to, links can't be seen.
    free = tuple(name for name in FITTED if parallel.tensor > 1 or name != "link_efficiency")
    begin = calibration(device.name)
    return fit(rows, predicted_s, lambda row: row[1], begin, free)


def _with_missing(
    measured: tuple[CopySpeed, ...], reckoned: tuple[CopySpeed, ...]
) -> tuple[CopySpeed, ...]:
    have = {(copy.tier, copy.direction) for copy in measured}
    wanted = {(tier.value, way.value) for tier in Tier for way in Direction} - have
    return (*measured, *(copy for copy in reckoned if (copy.tier, copy.direction) in wanted))
