"""Who gives way when device memory runs out: whoever ranks last, whichever model is its."""

from collections.abc import Sequence
from heapq import merge
from operator import attrgetter

from fabric.core.errors import Unavailable
from fabric.core.request import FinishReason
from fabric.scheduler.lane import Lane
from fabric.scheduler.request import SequenceState, SequenceStatus
from fabric.scheduler.request_pool import RequestPool
from fabric.scheduler.swapper import Swapper

_BY_ORDER = attrgetter("order")


class Room:
    """Takes device memory from sequences for the sake of others.

    Another model's blocks are of use only when a whole slab of it is free. What a victim of
    another model gives is therefore counted by its bytes, as if the rest of its slabs would
    follow; if it doesn't, the next one in the order has to give way too.
    """

    def __init__(self, pool: RequestPool, swappers: Sequence[Swapper]) -> None:
        self._pool = pool
        self._swappers = swappers

    @property
    def num_leaving(self) -> int:
        """Blocks of any model that copies under way are about to free."""
        return sum(lane.kv.num_leaving_blocks for lane in self._pool.lanes)

    def make(self, newcomer: SequenceState, num_blocks: int, now: float) -> None:
        """Preempt sequences that come after ``newcomer`` until it fits, or will after copies."""
        home = self._pool.lane_of(newcomer)
        num_short = float(num_blocks - home.kv.num_free_blocks)
        num_short -= sum(
            lane.kv.num_leaving_blocks * _worth(lane, home) for lane in self._pool.lanes
        )
        cause = f"{newcomer.request.source.request_id} ranks before it"
        for victim in self._last_first():
            if num_short <= 0 or victim.order < newcomer.order:
                return
            if self._swappers[victim.request.lane].may_go(victim, now):
                lane = self._pool.lane_of(victim)
                num_short -= lane.kv.num_own_blocks(victim.key) * _worth(lane, home)
                self.preempt(victim, cause, now)
        if num_short > 0:
            for lane in self._pool.lanes:
                lane.kv.park_idle()

    def last_running(self) -> SequenceState:
        """The running sequence of any model that comes last; there must be one."""
        return max((lane.running[-1] for lane in self._pool.lanes if lane.running), key=_BY_ORDER)

    def preempt(self, victim: SequenceState, cause: str, now: float) -> None:
        """Preempt a running sequence the cheaper way; its blocks are free now or after a copy."""
        self._swappers[victim.request.lane].preempt(victim, cause, now)

    def clear(self, lane: Lane, now: float) -> None:
        """Preempt all of a model's running sequences, because its weights are to go."""
        for victim in reversed(lane.running.copy()):
            self.preempt(victim, "its model gives way to another one", now)

    def end_deadlock(self, lanes: Sequence[Lane], now: float) -> None:
        """Take the blocks of a parked sequence, if nothing else lets any of these models run."""
        if any(lane.running for lane in lanes):
            return
        num_parking = sum(lane.kv.park_idle() for lane in lanes)
        if num_parking:
            return
        away = [item for lane in lanes for item in lane.away.values()]
        parked = [item for item in away if item.status is SequenceStatus.PARKED]
        heads = [head for lane in lanes if (head := lane.waiting.peek())]
        if parked:
            self._pool.recompute(max(parked, key=_BY_ORDER), now)
        elif heads:
            error = Unavailable("copies that do not end hold its blocks", retry_after_s=1.0)
            head = min(heads, key=_BY_ORDER)
            self._pool.abort(head.request, now, error, FinishReason.ERROR)

    def _last_first(self) -> list[SequenceState]:
        lists = [lane.running for lane in self._pool.lanes if lane.running]
        return list(merge(*lists, key=_BY_ORDER))[::-1]


def _worth(lane: Lane, home: Lane) -> float:
    """A block of one model in blocks of another, by their bytes."""
    if lane is home:
        return 1.0
    return home.kv.blocks_per_slab / lane.kv.blocks_per_slab
