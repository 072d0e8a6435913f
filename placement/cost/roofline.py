"""Costs of models whose sizes are known, on devices known by their numbers: nothing is measured."""

from collections.abc import Mapping
from typing import Final, TypeVar

from fabric.core.errors import ConfigError
from fabric.core.profile import CopySpeed, Profile
from fabric.kv.transfer import Direction, Tier
from placement.cost.calibration import Calibration
from placement.cost.iteration import Roofline, Work
from placement.cost.model import ModelCost
from placement.cost.sizes import is_divisible, kv_token_bytes, weight_bytes
from placement.devices import DeviceType, GroupConfig
from placement.shape import ModelShape

BLOCK_SIZE: Final = 16
BATCHES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
# An iteration whose stages' shares stand for those of all: both ends weigh as in decoding.
TYPICAL: Final = Work.decode(16, 1024)
COPY_LATENCY_S: Final = {Tier.HOST: 20e-6, Tier.DISK: 200e-6}

Value = TypeVar("Value")


class RooflineCost:
    """Knows what models of known sizes cost on devices known by their numbers."""

    def __init__(
        self,
        shapes: Mapping[str, ModelShape],
        devices: Mapping[str, DeviceType],
        calibrations: Mapping[str, Calibration] | None = None,
    ) -> None:
        """Know models and devices.

        Args:
            shapes: Of each model, by its name.
            devices: By their names.
            calibrations: By the devices' names; those that are left out have the usual one.
        """
        self._shapes = shapes
        self._devices = devices
        self._calibrations = calibrations or {}
        self._costs: dict[tuple[str, GroupConfig], ModelCost | None] = {}

    def cost(self, model: str, config: GroupConfig) -> ModelCost | None:
        """What the model costs there; None if it can't be cut so.

        Raises:
            ConfigError: The model, or the device type, is not known.
        """
        key = model, config
        if key not in self._costs:
            roofline = self.roofline(model, config)
            self._costs[key] = None if roofline is None else roofline_cost(roofline)
        return self._costs[key]

    def roofline(self, model: str, config: GroupConfig) -> Roofline | None:
        """The same before it is put into a table.

        Raises:
            ConfigError: As :meth:`cost` does.
        """
        shape = _known(self._shapes, "model", model)
        device = _known(self._devices, "device type", config.device)
        if not is_divisible(shape, config.parallel):
            return None
        calibration = self._calibrations.get(config.device, Calibration())
        return Roofline(shape, device, config.parallel, calibration)


def roofline_cost(roofline: Roofline) -> ModelCost:
    """A roofline's seconds and bytes in the form that all costs come to."""
    shape, device, parallel = roofline.shape, roofline.device, roofline.parallel
    weights = weight_bytes(shape, parallel)
    tokens = kv_token_bytes(shape, parallel)
    stages_s = roofline.stage_seconds(TYPICAL)
    # The processes of a node share its disk; each device has a link of its own to the memory.
    node_bytes = sum(weights) * parallel.tensor
    return ModelCost(
        profile=_profile(roofline, max(tokens) * BLOCK_SIZE),
        stage_shares=tuple(seconds / sum(stages_s) for seconds in stages_s),
        weight_bytes=weights,
        kv_token_bytes=tokens,
        overhead_s=roofline.calibration.iteration_s,
        load_s=max(weights) / device.host_bytes_per_s,
        fetch_s=node_bytes / device.disk_bytes_per_s,
    )


def _profile(roofline: Roofline, block_bytes: int) -> Profile:
    longest = roofline.shape.max_model_len
    # Between its kinks, a decode's time is straight in the context; a prompt's bends.
    lengths, contexts = _powers(1, 2, longest), _powers(16, 4, longest)
    prefill = tuple((length, roofline.seconds(Work.prompts(length))) for length in lengths)
    decode = tuple(
        (batch, context, roofline.seconds(Work.decode(batch, context)))
        for batch in BATCHES
        for context in contexts
    )
    speeds = {
        Tier.HOST: roofline.device.host_bytes_per_s,
        Tier.DISK: roofline.device.disk_bytes_per_s,
    }
    copies = tuple(
        CopySpeed(tier, way, speeds[tier], COPY_LATENCY_S[tier])
        for tier in Tier
        for way in Direction
    )
    return Profile(prefill, decode, copies, block_bytes)


def _powers(first: int, base: int, last: int) -> list[int]:
    """A number times powers of a base, below the last; and the last."""
    powers = []
    while first < last:
        powers.append(first)
        first *= base
    return [*powers, last]


def _known(values: Mapping[str, Value], what: str, name: str) -> Value:
    if name not in values:
        raise ConfigError(f"{what} {name!r} is not known; known: {', '.join(values) or 'none'}")
    return values[name]
