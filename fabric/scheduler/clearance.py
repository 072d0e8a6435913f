"""Device memory that is being gathered for one model's weights."""

from collections.abc import Sequence

from fabric.kv.slabs import SlabPool
from fabric.scheduler.weight_record import WeightRecord


class Clearance:
    """Who makes way for ``claimed``, and the slabs that are kept for it meanwhile.

    ``victims`` are cleared: their weights leave as soon as that frees enough. Before there are
    enough of them, pinned models may be ``squeezed``: they admit nobody, so that their KV shrinks.
    Slabs that become free are charged at once, because running sequences would take them else.
    """

    __slots__ = ("_slabs", "claimed", "num_kept", "squeezed", "victims")

    def __init__(self, slabs: SlabPool) -> None:
        self._slabs = slabs
        self.claimed: WeightRecord | None = None
        self.victims: Sequence[WeightRecord] = ()
        self.squeezed: Sequence[WeightRecord] = ()
        self.num_kept = 0

    def num_missing(self, record: WeightRecord) -> int:
        """Slabs that are neither free for the model's weights and KV nor kept for them."""
        num_kept = self.num_kept if record is self.claimed else 0
        return record.spec.needed_slabs - num_kept - self._slabs.slack

    def claim(
        self,
        record: WeightRecord,
        victims: Sequence[WeightRecord],
        squeezed: Sequence[WeightRecord] = (),
    ) -> None:
        """Go on to gather memory for a model, or begin to."""
        if record is not self.claimed:
            self.end()
        self.claimed, self.victims, self.squeezed = record, victims, squeezed
        num_more = min(record.spec.needed_slabs - self.num_kept, self._slabs.num_chargeable)
        self._slabs.charge(num_more)
        self.num_kept += num_more

    def suffices(self, record: WeightRecord, victims: Sequence[WeightRecord]) -> bool:
        """Whether enough is free for ``record`` as soon as the victims' weights are gone."""
        if any(victim.num_on_device for victim in victims):
            return False
        return self.num_missing(record) <= sum(item.num_freed_now for item in victims)

    def charge(self, record: WeightRecord) -> None:
        """Charge what the weights take; what was kept beyond that is free again, for their KV."""
        assert self.num_missing(record) <= 0
        if record is not self.claimed:
            self._slabs.charge(record.spec.num_slabs)
            return
        num_more = record.spec.num_slabs - self.num_kept
        self._slabs.charge(max(0, num_more))
        self.num_kept = max(0, -num_more)
        self.end()

    def end(self) -> None:
        """Give back what is kept; nobody makes way any more."""
        self._slabs.discharge(self.num_kept)
        self.num_kept = 0
        self.claimed, self.victims, self.squeezed = None, (), ()
