"""Who is next to come to the device, and why."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum, auto

from fabric.scheduler.weight_record import WeightRecord


class Urgency(IntEnum):
    """Why a model's weights are to come, the most urgent first.

    ASKED: a person wants it. PINNED: it has to be on the device. OVERDUE: it has had work for so
    long that it goes before better ranks. DEMANDED: it has work. STARTING: it is to be there from
    the start, if there is room.
    """

    ASKED = auto()
    PINNED = auto()
    OVERDUE = auto()
    DEMANDED = auto()
    STARTING = auto()


@dataclass(frozen=True, slots=True)
class Claimant:
    """A model whose weights are to come nearer, and what it goes by among its likes."""

    record: WeightRecord
    urgency: Urgency
    order: tuple[float, ...]

    @property
    def is_urgent(self) -> bool:
        """Whether it goes before better ranks."""
        return self.urgency <= Urgency.OVERDUE


def line_up(records: Iterable[WeightRecord], patience_s: float, now: float) -> list[Claimant]:
    """All whose weights are to come nearer and could begin to, in their order.

    Whoever has been waiting for ``patience_s`` is overdue. Models that have failed to come wait
    out their pause.
    """
    line = [
        claimant
        for record in records
        if record.is_on_disk_or_host and now >= record.retry_at_s
        if (claimant := _claimant(record, patience_s, now))
    ]
    line.sort(key=lambda claimant: (claimant.urgency, claimant.order, claimant.record.number))
    return line


def _claimant(record: WeightRecord, patience_s: float, now: float) -> Claimant | None:
    if record.wish is not None and record.wish is not record.state:
        return Claimant(record, Urgency.ASKED, (record.asked_at_s,))
    if record.pinned:
        return Claimant(record, Urgency.PINNED, ())
    if record.demand and record.waiting_since_s is not None:
        if now - record.waiting_since_s >= patience_s:
            return Claimant(record, Urgency.OVERDUE, (record.waiting_since_s,))
        return Claimant(record, Urgency.DEMANDED, record.demand.rank)
    if record.start in (None, record.state):
        return None
    return Claimant(record, Urgency.STARTING, ())
