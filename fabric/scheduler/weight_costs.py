"""How long weights take to move, and what it costs to send them away."""

from collections.abc import Sequence
from math import exp

from fabric.core.weights import WeightMove
from fabric.scheduler.weight_record import WeightRecord

# Until something is measured: a host's memory bus, and a local disk.
_LOAD_S_PER_BYTE = 1e-9
_FETCH_S_PER_BYTE = 5e-9
_WINDOW_S = 60.0


class RecentRate:
    """Arrivals a second, over the last minute or so: older ones count exponentially less."""

    __slots__ = ("_at_s", "_count")

    def __init__(self) -> None:
        self._count = 0.0
        self._at_s = 0.0

    def note(self, now: float) -> None:
        """One more has come."""
        self._count = self._decayed(now) + 1.0
        self._at_s = now

    def at(self, now: float) -> float:
        """The rate."""
        return self._decayed(now) / _WINDOW_S

    def _decayed(self, now: float) -> float:
        return self._count * exp(-max(0.0, now - self._at_s) / _WINDOW_S)


class MoveTimes:
    """Seconds that one kind of move takes: of each model as last measured, else by its bytes."""

    def __init__(self, known_s: Sequence[float], s_per_byte: float) -> None:
        self._last_s = list(known_s)
        self._guess = s_per_byte
        self._bytes = 0
        self._seconds = 0.0

    def note(self, model: int, num_bytes: int, seconds: float) -> None:
        """A move of ``num_bytes`` took so long."""
        self._last_s[model] = seconds
        self._bytes += num_bytes
        self._seconds += seconds

    def of(self, model: int, num_bytes: int) -> float:
        """What the next move of the model's ``num_bytes`` takes."""
        if self._last_s[model] > 0.0:
            return self._last_s[model]
        return num_bytes * (self._seconds / self._bytes if self._bytes else self._guess)


class WeightCosts:
    """What it costs to have a model's weights somewhere else: reload time x recent rate / bytes.

    Weights that never pass through host memory are loaded from disk, and timed apart.
    """

    def __init__(self, records: Sequence[WeightRecord]) -> None:
        via_host = [item.spec.load_s if item.uses_host else 0.0 for item in records]
        direct = [0.0 if item.uses_host else item.spec.load_s for item in records]
        self._loads = MoveTimes(via_host, _LOAD_S_PER_BYTE)
        self._fetches = MoveTimes([item.spec.fetch_s for item in records], _FETCH_S_PER_BYTE)
        self._direct_loads = MoveTimes(direct, _LOAD_S_PER_BYTE + _FETCH_S_PER_BYTE)
        self._rates = [RecentRate() for _ in records]

    def note_arrival(self, model: int, now: float) -> None:
        """A request for the model has come."""
        self._rates[model].note(now)

    def note_move(self, record: WeightRecord, move: WeightMove, seconds: float) -> None:
        """A FETCH or a LOAD took so long."""
        if move is WeightMove.FETCH:
            self._fetches.note(record.number, record.spec.host_bytes, seconds)
        else:
            self._times_of(record).note(record.number, record.spec.weight_bytes, seconds)

    def load_s(self, record: WeightRecord) -> float:
        """What the LOAD takes, from where the model's loads begin."""
        return self._times_of(record).of(record.number, record.spec.weight_bytes)

    def fetch_s(self, record: WeightRecord) -> float:
        """What the FETCH takes, if there is one."""
        spec = record.spec
        return self._fetches.of(record.number, spec.host_bytes) if record.uses_host else 0.0

    def of_eviction(self, record: WeightRecord, now: float) -> float:
        """The cost of taking the weights off the device, for each byte that it frees."""
        reload_s = self.load_s(record) + (0.0 if record.in_host else self.fetch_s(record))
        return reload_s * self._rates[record.number].at(now) / max(1, record.spec.weight_bytes)

    def of_drop(self, record: WeightRecord, now: float) -> float:
        """The cost of letting go of the copy in host memory, for each byte that it frees."""
        rate = self._rates[record.number].at(now)
        return self.fetch_s(record) * rate / max(1, record.spec.host_bytes)

    def _times_of(self, record: WeightRecord) -> MoveTimes:
        return self._loads if record.uses_host else self._direct_loads
