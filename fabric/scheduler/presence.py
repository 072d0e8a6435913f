"""Carries out, among sequences, what is decided about weights: who may run, and who must leave."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from fabric.core.errors import InvalidRequest, Unavailable
from fabric.core.request import FinishReason, LoadReport, ModelLoad
from fabric.core.weights import WeightOrder, WeightResult, WeightState
from fabric.kv.slabs import SlabPool
from fabric.scheduler.batch_chooser import BatchChooser
from fabric.scheduler.lane import Lane
from fabric.scheduler.request_pool import RequestPool
from fabric.scheduler.residency import Residency
from fabric.scheduler.room import Room
from fabric.scheduler.weights import Access, Demand, ModelWeights, WeightFigures

T = TypeVar("T")

_LOOK_PERIOD_S = 0.25
# For so long a sequence waits for KV memory before weights that nobody uses leave for it.
_KV_PATIENCE_S = 0.5
# Of a model whose weights are on the device for good.
_AT_REST = WeightFigures(WeightState.RESIDENT, pinned=False, num_loads=0, load_s=0.0, problem="")


class Presence:
    """Asks :class:`fabric.scheduler.residency.Residency` before an iteration, where need be."""

    def __init__(
        self,
        weights: Sequence[ModelWeights] = (),
        slabs: SlabPool | None = None,
        residency: Residency | None = None,
        slab_bytes: int = 0,
    ) -> None:
        """Follow where weights are; without a residency, on the device for good."""
        self._weights = weights
        self._residency = residency
        self._slabs = slabs
        self._slab_bytes = slab_bytes
        self._pool: RequestPool
        self._room: Room
        self._choosers: Sequence[BatchChooser] = ()
        self._closed: list[Lane] = []
        self._next_look_s = 0.0
        self._is_stuck = False

    def follow(self, pool: RequestPool, room: Room, choosers: Sequence[BatchChooser]) -> None:
        """Say whose weights they are."""
        self._pool, self._room, self._choosers = pool, room, choosers
        self._follow_access(0.0)

    @property
    def num_moves(self) -> int:
        """1 if weights are on their way, else 0."""
        return int(self._residency is not None and self._residency.has_work)

    def open_of(self, items: Sequence[T]) -> Sequence[T]:
        """Those of one thing for each model whose models can run iterations."""
        if not self._closed:
            return items
        closed = {lane.number for lane in self._closed}
        return [item for number, item in enumerate(items) if number not in closed]

    def note_arrival(self, lane: Lane, now: float) -> None:
        """Count a new request."""
        if self._residency is not None:
            self._residency.note_arrival(lane.number, now)

    def ask(self, lane: Lane, state: WeightState | None, pinned: bool | None, now: float) -> None:
        """Have a model's weights moved or pinned.

        Raises:
            InvalidRequest: They could never be there.
        """
        if self._residency is None:
            raise InvalidRequest.of("state", "can't change: this engine's weights don't move")
        self._residency.ask(lane.number, state, pinned, now)
        self._next_look_s = now

    def plan(self, now: float) -> tuple[WeightOrder, ...]:
        """What is to be done about weights before the next iteration."""
        residency = self._residency
        if residency is None or not self._is_due(residency, now):
            return ()
        self._next_look_s = now + _LOOK_PERIOD_S
        orders = residency.plan(self._demands(now), now)
        self._is_stuck = False
        for number, _ in residency.take_failed():
            self._give_up(self._pool.lanes[number], now)
        self._follow_access(now)
        return orders

    def note_stuck(self, now: float) -> None:
        """Nothing can run any more: weights may have to give way to KV."""
        self._is_stuck = True
        self._next_look_s = now

    def take_punched(self) -> tuple[int, ...]:
        """Slabs whose memory must go back to the system before weights are loaded."""
        return () if self._slabs is None else self._slabs.take_punched()

    def finish(self, result: WeightResult, now: float) -> None:
        """Take in how a move stands."""
        assert self._residency is not None, "nobody ordered a move of weights"
        self._residency.finish(result, now)
        self._follow_access(now)
        self._next_look_s = now

    def load_of(self, lane: Lane) -> ModelLoad:
        """What a model takes now, and how it is doing."""
        account, residency, number = lane.kv.account, self._residency, lane.number
        figures = _AT_REST if residency is None else residency.load(number)
        num_running = len({sequence.request.number for sequence in lane.running})
        return ModelLoad(
            lane.model,
            state=figures.state,
            pinned=figures.pinned,
            num_running=num_running,
            num_waiting=lane.num_requests - num_running,
            num_queued_tokens=lane.num_queued_tokens,
            num_slabs=account.num_slabs,
            num_idle_slabs=account.num_idle,
            weight_bytes=0 if residency is None else self._weights[number].weight_bytes,
            num_loads=figures.num_loads,
            load_s=figures.load_s,
            problem=figures.problem,
        )

    def memory_of(self, report: LoadReport) -> LoadReport:
        """A report with what the device's slabs are used for."""
        if self._slabs is None:
            return report
        fragmented_bytes = sum(
            lane.kv.fragmented_bytes(lane.spec.block_bytes, self._slab_bytes)
            for lane in self._pool.lanes
        )
        return replace(
            report,
            slab_bytes=self._slab_bytes,
            num_slabs=self._slabs.num_slabs,
            num_free_slabs=self._slabs.num_free,
            fragmented_bytes=fragmented_bytes,
        )

    def _is_due(self, residency: Residency, now: float) -> bool:
        if now >= self._next_look_s or residency.has_work:
            return True
        return any(lane.num_requests for lane in self._closed)

    def _demands(self, now: float) -> list[Demand]:
        demands = [
            Demand(
                lane.number,
                order,
                len(lane.waiting) > 0,
                lane.num_on_device,
                self._num_short_slabs(lane, now),
                not lane.num_on_device or lane.num_sampled > lane.num_sampled_before,
            )
            for lane in self._pool.lanes
            if (order := lane.best_order()) is not None
        ]
        demands.sort(key=lambda demand: demand.rank)
        return demands

    def _num_short_slabs(self, lane: Lane, now: float) -> int:
        """Slabs that the model's next sequence needs, and that only weights could still give."""
        short = self._choosers[lane.number].shortage
        if short is None or self._room.num_leaving or self._slabs is None:
            return 0
        if not self._is_stuck and now < short.since_s + _KV_PATIENCE_S:
            return 0
        num_blocks = short.num_needed - lane.kv.num_free_blocks
        num_slabs = -(-num_blocks // lane.kv.blocks_per_slab)
        return num_slabs + max(0, self._slabs.slack) if num_slabs > 0 else 0

    def _follow_access(self, now: float) -> None:
        if self._residency is None:
            return
        self._closed.clear()
        for lane, chooser in zip(self._pool.lanes, self._choosers, strict=True):
            access = self._residency.access(lane.number)
            lane.is_arriving = self._residency.state(lane.number) is WeightState.LOADING
            chooser.admits = access is Access.OPEN
            is_open = access in (Access.OPEN, Access.DRAINING)
            lane.note_presence(is_open, now)
            if not is_open:
                self._closed.append(lane)
            if access is Access.CLEARING:
                self._room.clear(lane, now)
            elif access is Access.ABSENT:
                self._room.clear(lane, now)
                # Workers forget all sequences of a model with its weights.
                lane.released.clear()

    def _give_up(self, lane: Lane, now: float) -> None:
        """End the requests that can't begin; those that are parked wait for another try.

        Why weights didn't come is for operators: it names files, and is in reports.
        """
        assert self._residency is not None
        retry_after_s = max(1.0, self._residency.retry_after_s(lane.number, now))
        error = Unavailable(
            f"model {lane.model!r} could not be loaded; the device group's status and log say why",
            retry_after_s,
        )
        for request in list(self._pool.requests.values()):
            if request.lane == lane.number and request.admitted_s is None:
                self._pool.abort(request, now, error, FinishReason.ERROR)
