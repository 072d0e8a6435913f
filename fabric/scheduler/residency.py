"""When the weights of a device group's models come and go."""

from collections.abc import Sequence

from fabric.core.weights import WeightOrder, WeightResult, WeightState
from fabric.kv.slabs import SlabAccount, SlabPool
from fabric.scheduler.clearance import Clearance
from fabric.scheduler.eviction import Eviction
from fabric.scheduler.settings import ResidencyConfig
from fabric.scheduler.weight_costs import WeightCosts
from fabric.scheduler.weight_limits import WeightLimits
from fabric.scheduler.weight_line import Claimant, Urgency, line_up
from fabric.scheduler.weight_moves import WeightMoves
from fabric.scheduler.weight_record import WeightRecord
from fabric.scheduler.weights import Access, Demand, ModelWeights, WeightFigures

# Whoever has waited for so many turns is overdue.
PATIENCE = 8.0
_AT_ONCE = float("-inf")
_NEVER = float("inf")


class Residency:
    """Decides which models' weights are on the device, in host memory, or on disk only.

    Models that want to come stand in a line (:mod:`fabric.scheduler.weight_line`): one FETCH at a
    time, and device memory is gathered for one at a time. Others give way by what their return
    would cost (:mod:`fabric.scheduler.eviction`), those with work only after a turn of
    ``min_stay`` times their load time, and to better ranks.

    Nobody waits for ever. Let ``n`` models have turns of ``T`` at most, fetches of ``F``, loads of
    ``L`` that don't fail, and let the scheduler take ``C`` at most until a model that it clears or
    drains has nothing on the device. A model is overdue after ``PATIENCE`` turns, goes before all
    ranks then, and after at most ``n - 1`` that were overdue before it. So it waits for at most
    ``PATIENCE * T + (n + 1) * (T + F + C + L)``, but for what people ask for meanwhile.
    (``T`` is at least ``L``, however small ``min_stay`` is. Turns begin at the first plan in which
    the weights are there, so that a slow iteration doesn't use them up.)
    """

    def __init__(
        self,
        weights: Sequence[ModelWeights],
        slabs: SlabPool,
        accounts: Sequence[SlabAccount],
        config: ResidencyConfig,
    ) -> None:
        """Nothing is on the device or in host memory yet.

        Raises:
            ConfigError: A model can't be loaded beside the pinned ones, or its KV's bounds
                are wrong.
        """
        self._config = config
        self._slabs = slabs
        self._records = [
            WeightRecord(number, spec, account, 0 < spec.host_bytes <= config.host_bytes)
            for number, (spec, account) in enumerate(zip(weights, accounts, strict=True))
        ]
        self._limits = WeightLimits(self._records, slabs.num_slabs, config.host_bytes)
        self._limits.check_start()
        self._limits.choose_first()
        for record in self._records:
            record.account.set_bounds(0, record.spec.max_slabs)
        self._costs = WeightCosts(self._records)
        self._moves = WeightMoves(self._records, slabs, self._costs, config.host_bytes)
        self._eviction = Eviction(self._records, self._costs, config.min_stay)
        self._clearance = Clearance(slabs)
        self._short_of_host: WeightRecord | None = None
        self._due_at_s = _AT_ONCE

    @property
    def has_work(self) -> bool:
        """Whether moves are under way."""
        return self._moves.num_under_way > 0

    @property
    def due_at_s(self) -> float:
        """When ``plan`` has something to do although nothing happens; in the past: now."""
        return self._due_at_s

    @property
    def num_kept_slabs(self) -> int:
        """Slabs that are charged for weights that can't come yet, while others make way."""
        return self._clearance.num_kept

    def note_arrival(self, model: int, now: float) -> None:
        """A request for the model has come: what its recent rate is counted from."""
        self._costs.note_arrival(model, now)

    def access(self, model: int) -> Access:
        """What may be done with the model now."""
        return self._records[model].access

    def state(self, model: int) -> WeightState:
        """Where its weights are."""
        return self._records[model].state

    def load(self, model: int) -> WeightFigures:
        """Its figures, for reports."""
        record = self._records[model]
        return WeightFigures(
            record.state, record.pinned, record.num_loads, record.load_s, record.problem
        )

    def expected_s(self, model: int) -> tuple[float, float]:
        """Seconds that its weights take from disk to host memory, and from there to the device.

        As measured, or from what others took by the byte; 0.0 from disk where they come directly.
        """
        record = self._records[model]
        return self._costs.fetch_s(record), self._costs.load_s(record)

    def retry_after_s(self, model: int, now: float) -> float:
        """How long a model whose move has failed is left alone; 0.0: it isn't."""
        return max(0.0, self._records[model].retry_at_s - now)

    def plan(self, demands: Sequence[Demand], now: float) -> tuple[WeightOrder, ...]:
        """What workers do with weights before the next iteration; ``demands``: the best first."""
        if now < self._due_at_s and self._are_open(demands, now):
            return ()
        self._note(demands, now)
        for record in self._records:
            self._let_go(record, now)
        self._load_first(self._line(now), now)
        self._relieve_first(now)
        line = self._line(now)
        self._fetch_first(line, now)
        for record in self._records:
            record.access = self._access(record)
        self._due_at_s = self._next_at_s(line, now)
        return self._moves.take_orders()

    def finish(self, result: WeightResult, now: float) -> None:
        """Note how a move stands."""
        record = self._moves.finish(result, now)
        record.access = self._access(record)
        self._due_at_s = _AT_ONCE

    def take_failed(self) -> list[tuple[int, str]]:
        """Models whose move has failed since the last call, and why."""
        return self._moves.take_failed()

    def ask(self, model: int, state: WeightState | None, pinned: bool | None, now: float) -> None:
        """Bring a model's weights to ``state``, and pin them or not; None: as is.

        Weights that are to leave the device do so when no sequence of theirs is there any more;
        requests that wait by then wake them again. Weights that are to come go before all others,
        and stay for a turn at least. Pinning brings them, too.

        Raises:
            InvalidRequest: That can never be.
        """
        record = self._records[model]
        is_pinned = record.pinned if pinned is None else pinned
        self._limits.check_wish(record, state, is_pinned)
        record.pinned = is_pinned
        state = WeightState.RESIDENT if state is None and pinned else state
        if state is not None:
            record.wish, record.asked_at_s = state, now
            record.start, record.retry_at_s, record.problem = None, _AT_ONCE, ""
            record.access = self._access(record)
        self._due_at_s = _AT_ONCE

    def _are_open(self, demands: Sequence[Demand], now: float) -> bool:
        """Whether all models with work can go on, as they could at the last plan."""
        for demand in demands:
            record = self._records[demand.model]
            if record.access is not Access.OPEN or demand.num_short_slabs:
                return False
            record.active_at_s = now
        return True

    def _note(self, demands: Sequence[Demand], now: float) -> None:
        for record in self._records:
            record.demand = None
        for demand in demands:
            self._records[demand.model].note_demand(demand, now)
        for record in self._records:
            record.note_turn(now)
            if record.demand is None:
                record.waiting_since_s = None

    def _let_go(self, record: WeightRecord, now: float) -> None:
        """Send weights away that nobody holds, and see whether a wish has come true."""
        if record.state is WeightState.RESIDENT:
            is_free = record.is_leaving and not record.num_on_device
            if is_free or now >= self._idle_at_s(record, now):
                self._moves.evict(record)
        if record.state is WeightState.HOST and record.wish is WeightState.COLD:
            self._moves.drop(record)
        if record.wish is not record.state:
            return
        if record.wish is WeightState.RESIDENT:
            record.kept_until_s = now + self._eviction.turn_s(record)
        record.wish = None

    def _idle_at_s(self, record: WeightRecord, now: float) -> float:
        """When weights on the device leave if no work comes for them."""
        if self._config.idle_s is None or record.pinned:
            return _NEVER
        active_at_s = now if record.demand else record.active_at_s
        return max(active_at_s + self._config.idle_s, record.kept_until_s)

    def _line(self, now: float) -> list[Claimant]:
        """Models that are to come; patience is counted in the longest turn of all."""
        turn_s = max(
            max(self._eviction.turn_s(item), self._costs.load_s(item)) for item in self._records
        )
        return line_up(self._records, PATIENCE * turn_s, now)

    def _load_first(self, line: Sequence[Claimant], now: float) -> None:
        """Load as many as can be; whoever memory is gathered for is the first.

        Copies can't be dropped while they are loaded from: behind an urgent model that is short of
        host memory, nobody begins to.
        """
        claimed = self._clearance.claimed
        places = [item.record for item in line]
        short = self._short_of_host
        place = places.index(short) if short in places else len(line)
        ready = [
            item
            for number, item in enumerate(line)
            if item.record.is_loadable
            if number < place or item.record is claimed or not item.record.uses_host
        ]
        ready.sort(key=lambda item: item.record is not claimed)
        if claimed and not (ready and ready[0].record is claimed):
            self._clearance.end()
        for claimant in ready:
            if self._load(claimant, now):
                continue
            if claimant.is_urgent or self._clearance.claimed:
                return

    def _load(self, claimant: Claimant, now: float) -> bool:
        """Load weights if there is room, else begin to make it; whether they are on their way."""
        record, clearance = claimant.record, self._clearance
        taken = clearance.victims if record is clearance.claimed else ()
        num_missing = clearance.num_missing(record)
        victims = self._eviction.from_device(claimant, num_missing, taken, now)
        if victims is not None:
            if not clearance.suffices(record, victims):
                clearance.claim(record, victims)
                return False
            for victim in victims:
                self._moves.evict(victim)
            self._moves.load(record, clearance, now)
            return True
        if claimant.urgency is Urgency.STARTING:
            record.start_in_host()
        elif squeezed := self._eviction.to_squeeze(claimant, num_missing, now):
            clearance.claim(record, (), squeezed)
        elif record is clearance.claimed:
            clearance.end()
        return False

    def _relieve_first(self, now: float) -> None:
        """Send weights away, that nobody uses now, for KV that can't do without their memory."""
        demands = [item.demand for item in self._records if item.demand]
        short = [demand for demand in demands if demand.num_short_slabs]
        if self._clearance.claimed or not short:
            return
        first = min(short, key=lambda demand: demand.rank)
        for victim in self._eviction.for_kv(first, self._slabs.slack, now):
            self._moves.evict(victim)

    def _fetch_first(self, line: Sequence[Claimant], now: float) -> None:
        """Fetch the first of those on disk that there is room for in host memory."""
        self._short_of_host = None
        if self._moves.is_fetching:
            return
        for claimant in line:
            record = claimant.record
            if record.state is not WeightState.COLD or not record.uses_host:
                continue
            num_short = record.spec.host_bytes - self._moves.free_host_bytes
            kept = self._clearance.claimed
            drops = self._eviction.from_host(claimant, num_short, line, kept, now)
            if drops is not None:
                for other in drops:
                    self._moves.drop(other)
                self._moves.fetch(record, now)
                return
            if claimant.urgency is Urgency.STARTING and not self.has_work:
                record.start = None
            elif claimant.is_urgent:
                self._short_of_host = record
                return

    def _access(self, record: WeightRecord) -> Access:
        is_begun = record.state is WeightState.LOADING and record.is_begun
        if record.state is not WeightState.RESIDENT and not is_begun:
            return Access.ABSENT
        if record in self._clearance.victims:
            return Access.CLEARING
        if record.is_leaving or record in self._clearance.squeezed:
            return Access.DRAINING
        return Access.OPEN

    def _next_at_s(self, line: Sequence[Claimant], now: float) -> float:
        if self._clearance.claimed or any(item.record.is_on_disk_or_host for item in line):
            return _AT_ONCE
        due_s = _NEVER
        for record in self._records:
            if record.state is WeightState.RESIDENT:
                due_s = min(due_s, _AT_ONCE if record.is_leaving else self._idle_at_s(record, now))
            elif record.is_on_disk_or_host and (record.pinned or record.demand):
                due_s = min(due_s, record.retry_at_s)
        return due_s
