"""What has been ordered about weights, and what came of it."""

from collections.abc import Sequence
from itertools import count

from fabric.core.weights import WeightMove, WeightOrder, WeightResult, WeightState
from fabric.kv.slabs import SlabPool
from fabric.scheduler.clearance import Clearance
from fabric.scheduler.weight_costs import WeightCosts
from fabric.scheduler.weight_record import WeightRecord


class WeightMoves:
    """Orders moves of weights, and keeps slabs, host memory and states in step with them."""

    def __init__(
        self,
        records: Sequence[WeightRecord],
        slabs: SlabPool,
        costs: WeightCosts,
        host_bytes: int,
    ) -> None:
        self._records = records
        self._slabs = slabs
        self._costs = costs
        self._host_bytes = host_bytes
        self._numbers = count()
        self._orders: list[WeightOrder] = []
        self._under_way: dict[int, tuple[WeightRecord, WeightMove, float]] = {}
        self._failed: list[tuple[int, str]] = []

    @property
    def num_under_way(self) -> int:
        """FETCHes and LOADs without their last result."""
        return len(self._under_way)

    @property
    def is_fetching(self) -> bool:
        """Whether a FETCH is among them."""
        return any(item.state is WeightState.FETCHING for item in self._records)

    @property
    def free_host_bytes(self) -> int:
        """Host memory that no copy has, or is on its way into."""
        return self._host_bytes - sum(
            item.spec.host_bytes
            for item in self._records
            if item.in_host or item.state is WeightState.FETCHING
        )

    def fetch(self, record: WeightRecord, now: float) -> None:
        """Bring weights from disk to host memory, which must have room."""
        assert record.state is WeightState.COLD
        assert record.spec.host_bytes <= self.free_host_bytes
        record.begin(WeightState.FETCHING)
        self._order(record, WeightMove.FETCH, now)

    def drop(self, record: WeightRecord) -> None:
        """Let go of weights in host memory."""
        assert record.in_host
        assert record.state in (WeightState.HOST, WeightState.RESIDENT)
        record.in_host = False
        if record.state is WeightState.HOST:
            record.state = WeightState.COLD
        self._order(record, WeightMove.DROP)

    def load(self, record: WeightRecord, clearance: Clearance, now: float) -> None:
        """Bring weights to the device, which must have room."""
        assert record.is_loadable
        clearance.charge(record)
        record.account.set_bounds(record.spec.num_kv_slabs, record.spec.max_slabs)
        record.begin(WeightState.LOADING)
        self._order(record, WeightMove.LOAD, now)

    def evict(self, record: WeightRecord) -> None:
        """Free the weights' device memory."""
        assert record.state is WeightState.RESIDENT
        record.state = WeightState.HOST if record.in_host else WeightState.COLD
        self._free(record)
        self._order(record, WeightMove.EVICT)

    def take_orders(self) -> tuple[WeightOrder, ...]:
        """The orders since the last call."""
        if not self._orders:
            return ()
        orders = tuple(self._orders)
        self._orders.clear()
        return orders

    def take_failed(self) -> list[tuple[int, str]]:
        """Models whose move has failed since the last call, and why."""
        failed = self._failed.copy()
        self._failed.clear()
        return failed

    def finish(self, result: WeightResult, now: float) -> WeightRecord:
        """Note how a move stands; whose it is."""
        record, move, began_s = self._under_way[result.number]
        if not (result.is_last or result.error):
            record.is_begun = move is WeightMove.LOAD
            return record
        del self._under_way[result.number]
        if result.error:
            self._fail(record, move, result.error, now)
            return record
        seconds = result.seconds or now - began_s
        self._costs.note_move(record, move, seconds)
        if move is WeightMove.FETCH:
            record.arrive_in_host()
        else:
            record.arrive(seconds, now)
        return record

    def _fail(self, record: WeightRecord, move: WeightMove, error: str, now: float) -> None:
        record.fail(error, now)
        if move is WeightMove.LOAD:
            self._free(record)
        self._failed.append((record.number, error))

    def _free(self, record: WeightRecord) -> None:
        self._slabs.discharge(record.spec.num_slabs)
        record.account.set_bounds(0, record.spec.max_slabs)

    def _order(self, record: WeightRecord, move: WeightMove, now: float | None = None) -> None:
        number = next(self._numbers)
        self._orders.append(WeightOrder(number, record.number, move))
        if now is not None:
            self._under_way[number] = record, move, now
