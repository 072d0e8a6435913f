"""What can never be on one device, or in its host's memory."""

from collections.abc import Sequence

from fabric.core.errors import ConfigError, InvalidRequest
from fabric.core.weights import WeightState
from fabric.scheduler.weight_record import WeightRecord

_LASTING = (WeightState.COLD, WeightState.HOST, WeightState.RESIDENT)


class WeightLimits:
    """Refuses what would leave a model of the group without a place for ever."""

    def __init__(self, records: Sequence[WeightRecord], num_slabs: int, host_bytes: int) -> None:
        self._records = records
        self._num_slabs = num_slabs
        self._host_bytes = host_bytes

    def check_start(self) -> None:
        """Check what the models take.

        Raises:
            ConfigError: One can't be loaded beside the pinned ones, or its KV's bounds are wrong.
        """
        if refusal := self._crowded([item for item in self._records if item.pinned]):
            raise ConfigError(refusal)
        for spec in (item.spec for item in self._records):
            if not spec.num_kv_slabs <= spec.max_slabs <= self._num_slabs:
                raise ConfigError(
                    f"{spec.model}: its KV gets {spec.max_slabs} slabs at most; allowed: "
                    f"{spec.num_kv_slabs} to {self._num_slabs}"
                )

    def check_wish(self, record: WeightRecord, state: WeightState | None, pinned: bool) -> None:
        """Check where a person wants a model.

        Raises:
            InvalidRequest: It can't be there.
        """
        if state is not None and state not in _LASTING:
            allowed = ", ".join(_LASTING)
            raise InvalidRequest.of("state", f"{state} is only a passage; allowed: {allowed}")
        if pinned and state in (WeightState.COLD, WeightState.HOST):
            raise InvalidRequest.of("state", f"{state}, but pinned weights stay; unpin them")
        if state is WeightState.HOST and not record.uses_host:
            raise InvalidRequest.of(
                "state",
                f"host memory keeps {self._host_bytes} bytes of weights, and these take "
                f"{record.spec.host_bytes}; allowed: cold, resident",
            )
        pins = [item for item in self._records if item.pinned and item is not record]
        if pinned and (refusal := self._crowded([*pins, record])):
            raise InvalidRequest.of("pinned", refusal)

    def choose_first(self) -> None:
        """Let models start on the device as far as there is room, pinned ones before others."""
        num_left = self._num_slabs
        for record in sorted(self._records, key=lambda item: not item.pinned):
            if not record.pinned and record.start is not WeightState.RESIDENT:
                continue
            if record.spec.needed_slabs > num_left:
                record.start_in_host()
            else:
                num_left -= record.spec.needed_slabs

    def _crowded(self, pins: Sequence[WeightRecord]) -> str:
        """Why not all of them can be pinned; empty: they can."""
        names = ", ".join(item.spec.model for item in pins)
        num_pinned = sum(item.spec.needed_slabs for item in pins)
        if num_pinned > self._num_slabs:
            return f"{names} together need {num_pinned} slabs of {self._num_slabs}"
        beside = f"; pinned {names} need {num_pinned} of them" if pins else ""
        for item in self._records:
            needed = item.spec.needed_slabs
            if item not in pins and needed > self._num_slabs - num_pinned:
                return f"{item.spec.model} needs {needed} slabs of {self._num_slabs}{beside}"
        return ""
