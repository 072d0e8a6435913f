"""Who gives way to weights: on the device, and in host memory."""

from collections.abc import Callable, Iterable, Sequence

from fabric.core.weights import WeightState
from fabric.scheduler.weight_costs import WeightCosts
from fabric.scheduler.weight_line import Claimant, Urgency
from fabric.scheduler.weight_record import WeightRecord
from fabric.scheduler.weights import Access, Demand

# However quickly weights move, iterations need some time to get anywhere.
_SHORTEST_TURN_S = 0.25


# A model that has had no new token yet keeps its place for so many turns: else two could throw away
# each other's half-computed prompts for ever.
_TURNS_TO_GAIN = 16.0


class Eviction:
    """Picks as few as needed of those that may be taken, the cheapest first.

    Source: GreedyDual-Size (Cao and Irani, USITS 1997), cost over size; here with recent rates.
    """

    def __init__(self, records: Sequence[WeightRecord], costs: WeightCosts, min_stay: float):
        self._records = records
        self._costs = costs
        self._min_stay = min_stay

    def turn_s(self, record: WeightRecord) -> float:
        """How long a model stays once it has been loaded, as long as it has work."""
        return max(_SHORTEST_TURN_S, self._min_stay * self._costs.load_s(record))

    def from_device(
        self, claimant: Claimant, num_slabs: int, taken: Iterable[WeightRecord], now: float
    ) -> list[WeightRecord] | None:
        """Whose weights leave the device so that ``num_slabs`` more are free there.

        Models without work go first. Those that are ``taken`` already may still be, whatever has
        become of their ranks, and go before other ones. None: there is no way.
        """
        taken = list(taken)
        candidates = [
            record
            for record in self._records
            if record.state is WeightState.RESIDENT and not record.pinned
            if (record in taken and now >= record.kept_until_s)
            or self._may_take(claimant, record, now)
        ]
        candidates.sort(key=lambda item: (item not in taken, *self._device_order(item, now)))
        return _fewest(candidates, num_slabs, lambda item: item.num_freed)

    def for_kv(self, demand: Demand, num_free: int, now: float) -> list[WeightRecord]:
        """Whose weights leave the device at once for the sake of a resident model's KV.

        Nothing of theirs is in use; they have no work, or work of a worse rank after their turn.
        """
        record = self._records[demand.model]
        if record.access is not Access.OPEN:
            return []
        claimant = Claimant(record, Urgency.DEMANDED, demand.rank)
        candidates = [
            other
            for other in self._records
            if other.state is WeightState.RESIDENT and not other.pinned and not other.num_on_device
            if other is not record and self._may_take(claimant, other, now)
        ]
        candidates.sort(key=lambda item: self._device_order(item, now))
        num_needed = demand.num_short_slabs - num_free
        return _fewest(candidates, num_needed, lambda item: item.num_freed_now) or []

    def to_squeeze(
        self, claimant: Claimant, num_slabs: int, now: float
    ) -> list[WeightRecord] | None:
        """Which pinned models let their sequences end so that ``num_slabs`` can be freed.

        That counts what all models that may leave would give, too.
        """
        for record in self._records:
            if record.state is WeightState.RESIDENT and not record.pinned:
                num_slabs -= record.num_freed if self._may_take(claimant, record, now) else 0
        candidates = [
            record
            for record in self._records
            if record.state is WeightState.RESIDENT and record.pinned
            if record.demand and self._goes_before(claimant, record)
        ]
        candidates.sort(key=_num_over, reverse=True)
        return _fewest(candidates, num_slabs, _num_over)

    def from_host(
        self,
        claimant: Claimant,
        num_bytes: int,
        line: Sequence[Claimant],
        kept: WeightRecord | None,
        now: float,
    ) -> list[WeightRecord] | None:
        """Whose copies in host memory go so that ``num_bytes`` more are free; None: no way.

        Copies of models on the device go first. Those of models in ``line`` go only to those that
        are urgent and come before them, those without work not to those that are only starting;
        nobody takes that of ``kept``.
        """
        index = line.index(claimant)
        others = {item.record.number: place for place, item in enumerate(line)}

        def may_go(record: WeightRecord) -> bool:
            if record.state is WeightState.RESIDENT:
                return True
            if (
                record is kept
                or record.state is not WeightState.HOST
                or claimant.urgency is Urgency.STARTING
            ):
                return False
            place = others.get(record.number, index if record.demand is None else len(line))
            return place == index or (claimant.is_urgent and place > index)

        candidates = [record for record in self._records if record.in_host and may_go(record)]
        candidates.sort(
            key=lambda item: (
                item.state is WeightState.HOST, others.get(item.number, -1) >= 0,
                self._costs.of_drop(item, now), item.active_at_s,
            )
        )  # fmt: skip
        return _fewest(candidates, num_bytes, lambda item: item.spec.host_bytes)

    def _device_order(self, record: WeightRecord, now: float) -> tuple[float, ...]:
        """Without work first, then by cost, then whoever has been without work for longest."""
        has_work = record.demand is not None
        return has_work, self._costs.of_eviction(record, now), record.active_at_s

    def _may_take(self, claimant: Claimant, record: WeightRecord, now: float) -> bool:
        if claimant.urgency is Urgency.STARTING:
            return False
        if now < record.kept_until_s and claimant.urgency is not Urgency.ASKED:
            return False
        if record.demand is None:
            return True
        num_turns = 1.0 if record.demand.has_gained else _TURNS_TO_GAIN
        is_over = now >= record.since_s + num_turns * self.turn_s(record)
        return is_over and self._goes_before(claimant, record)

    @staticmethod
    def _goes_before(claimant: Claimant, record: WeightRecord) -> bool:
        if claimant.is_urgent:
            return True
        rank = record.demand.rank if record.demand else ()
        return claimant.urgency is Urgency.DEMANDED and claimant.order < rank


def _num_over(record: WeightRecord) -> int:
    """What its KV has beyond its guarantee."""
    return record.held_slabs - record.spec.num_kv_slabs


def _fewest(
    candidates: Sequence[WeightRecord], needed: int, gain: Callable[[WeightRecord], int]
) -> list[WeightRecord] | None:
    """The first candidates that give what is needed, without those whose share isn't."""
    picked: list[WeightRecord] = []
    for record in candidates:
        if needed <= 0:
            break
        picked.append(record)
        needed -= gain(record)
    if needed > 0:
        return None
    for record in reversed(picked.copy()):
        if needed + gain(record) <= 0:
            picked.remove(record)
            needed += gain(record)
    return picked
