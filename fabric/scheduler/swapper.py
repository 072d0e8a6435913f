"""Whose KV leaves the device and comes back, when, and at what cost."""

from fabric.kv.transfer import BlockOrders, Direction, Tier, Transfer, TransferResult
from fabric.scheduler.copy_speeds import CopySpeeds
from fabric.scheduler.lane import Lane
from fabric.scheduler.plan import StepPlan
from fabric.scheduler.request import SequenceState, SequenceStatus
from fabric.scheduler.request_pool import RequestPool
from fabric.scheduler.reserve import ArrivalReserve
from fabric.scheduler.settings import SchedulerConfig

# A sequence that was brought back runs this many times as long as its round trip took before it
# may be sent away for another one's sake: swapping then costs at most a fifth of its time.
_MIN_RUN_PER_ROUND_TRIP = 4.0
_MAX_TRANSFERS_AHEAD = 4


class Swapper:
    """Preempts one model's sequences by swapping or recomputing, and moves blocks ahead of need.

    ``num_failed`` transfers ended in recomputation; ``bytes_moved`` counts by direction.

    Source: FastServe (Wu et al.), section 4.2: proactive swapping by estimated next scheduled
    time, the largest out first, the smallest in first.
    """

    def __init__(self, config: SchedulerConfig, lane: Lane, pool: RequestPool) -> None:
        kv = lane.kv
        self.speeds = CopySpeeds(lane.spec.profile)
        self.num_failed = 0
        self.bytes_moved = {Direction.OUT: 0, Direction.IN: 0}
        self._config = config
        self._lane = lane
        self._kv = kv
        self._pool = pool
        self._profile = lane.spec.profile
        self._tier = Tier.HOST if kv.space.num_host_slots else Tier.DISK
        self._has_tiers = bool(kv.space.num_host_slots or kv.space.num_disk_slots)
        self._reserve = ArrivalReserve(kv.num_blocks)
        self._under_way: dict[int, tuple[Transfer, float]] = {}
        self._late: dict[int, Transfer] = {}

    @property
    def num_under_way(self) -> int:
        """Transfers under way that sequences may wait for."""
        return len(self._under_way)

    def note_arrival(self, num_tokens: int, now: float) -> None:
        """Count a new request's prompt."""
        self._reserve.note(self._kv.num_blocks_for(num_tokens), now)

    def take_orders(self, now: float) -> BlockOrders:
        """What workers are to do with blocks before the next iteration."""
        orders = self._kv.take_orders()
        for transfer in orders.transfers:
            self._under_way[transfer.number] = (transfer, now)
        return orders

    def finish(self, result: TransferResult, now: float) -> bool:
        """Take in a transfer that is over; a sequence whose transfer failed is recomputed.

        Returns:
            Whether it was one of this model's.
        """
        late = self._late.pop(result.number, None)
        if late is None and result.number not in self._under_way:
            return False
        transfer = late or self._under_way.pop(result.number)[0]
        key = self._kv.finish_transfer(result)
        if not result.error:
            self.speeds.note(transfer, result)
            self.bytes_moved[transfer.direction] += result.num_bytes
        elif late is None:
            self.num_failed += 1
        if key is None:
            return True
        sequence = self._pool.sequences[key]
        if result.error:
            self._recover(sequence, result.error, now)
        else:
            sequence.request.swapped_bytes += result.num_bytes
            self._pool.follow(sequence, now)
        return True

    def abandon_late(self, now: float) -> None:
        """Give up transfers that take too long, and recompute the sequences that wait for them."""
        while self._under_way:
            number, (transfer, start_s) = next(iter(self._under_way.items()))
            if now - start_s <= self._config.transfer_timeout_s:
                return
            del self._under_way[number]
            self._late[number] = transfer
            self.num_failed += 1
            key = self._kv.abandon_transfer(number)
            if key is not None:
                problem = f"the copy took longer than {self._config.transfer_timeout_s} s"
                self._recover(self._pool.sequences[key], problem, now)

    def preempt(self, victim: SequenceState, cause: str, now: float) -> None:
        """Preempt a running sequence the cheaper way; its blocks are free now or after a copy."""
        victim.request.last_preemption = f"{cause}; its KV was parked"
        if not self._should_swap(victim) or not self._pool.park(victim, now):
            self._pool.recompute(victim, now)
            victim.request.last_preemption = f"{cause}; its KV was dropped"

    def move_ahead(self, plan: StepPlan, now: float) -> None:
        """Keep a reserve of free blocks, and use what is beyond it for who runs next."""
        if not self._has_tiers or self._config.swap != "proactive":
            return
        if not self._pool.policy.is_preemptive or self.num_under_way >= _MAX_TRANSFERS_AHEAD:
            return
        kv = self._kv
        reserve = self._reserve.num_blocks(self._horizon_s(), now)
        num_short = reserve - kv.num_free_blocks - kv.num_leaving_blocks
        if num_short > 0:
            self._send_away(plan, num_short, now)
        elif kv.num_free_blocks > (num_spare := reserve + reserve // 2 + 1):
            self._fetch_ahead(num_spare, now)

    def may_go(self, victim: SequenceState, now: float) -> bool:
        """Whether a running sequence may be preempted for the sake of one that ranks before it."""
        return not self._is_protected(victim, now) and not self._is_deferred(victim)

    def _send_away(self, plan: StepPlan, num_blocks: int, now: float) -> None:
        next_run_s = self._pool.policy.next_run_s
        idle = [
            sequence
            for sequence in self._lane.running
            if sequence.key not in plan
            and sequence.num_computed_tokens
            and sequence.num_computed_tokens == sequence.num_scheduled_tokens
            and not self._is_protected(sequence, now)
        ]
        idle.sort(key=lambda sequence: (next_run_s(sequence, now), sequence.order))
        while idle and num_blocks > 0 and self.num_under_way < _MAX_TRANSFERS_AHEAD:
            victim = idle.pop()
            num_own = self._kv.num_own_blocks(victim.key)
            if not self._should_swap(victim) or not self._pool.park(victim, now):
                return
            victim.request.last_preemption = "room for arrivals; its KV was parked"
            num_blocks -= num_own

    def _fetch_ahead(self, num_spare: int, now: float) -> None:
        next_run_s = self._pool.policy.next_run_s
        parked = [s for s in self._lane.away.values() if s.status is SequenceStatus.PARKED]
        if not parked:
            return
        best = min(parked, key=lambda sequence: (next_run_s(sequence, now), sequence.order))
        # Who goes before it may be gathering blocks, one departure after another: none are spare.
        if best is self._lane.waiting.peek():
            self._pool.fetch(best, len(best.tokens), num_spare, now)

    def _should_swap(self, victim: SequenceState) -> bool:
        num_tokens = self._pool.num_parkable(victim)
        if not self._has_tiers or not num_tokens:
            return False
        if self._config.preemption != "auto":
            return self._config.preemption == "swap"
        # A copy keeps the victim waiting, a recomputation all that run.
        recompute_s = self._profile.prefill_s(num_tokens)
        return self._round_trip_s(victim) <= recompute_s * len(self._lane.running)

    def _round_trip_s(self, sequence: SequenceState) -> float:
        """Seconds until a sequence's blocks are free, and to have them back."""
        block_bytes = self._kv.space.block_bytes
        num_bytes = self._kv.num_blocks_for(self._pool.num_parkable(sequence)) * block_bytes
        queued_bytes = self._kv.num_leaving_blocks * block_bytes
        out_s = self.speeds.copy_s(self._tier, Direction.OUT, num_bytes + queued_bytes)
        return out_s + self.speeds.copy_s(self._tier, Direction.IN, num_bytes)

    def _horizon_s(self) -> float:
        """How long it takes to free the blocks of one sequence: the reserve must last so long."""
        typical = self._kv.num_blocks // max(1, len(self._lane.running))
        num_bytes = typical * self._kv.space.block_bytes
        copy_s = self.speeds.copy_s(self._tier, Direction.OUT, num_bytes)
        return 2.0 * (copy_s + self._profile.min_iteration_s)

    def _is_protected(self, sequence: SequenceState, now: float) -> bool:
        if not sequence.num_preemptions:
            return False
        if sequence.num_preempted_tokens == len(sequence.tokens):
            # Else sequences could take turns for ever without a new token.
            return True
        if not self._has_tiers:
            return False
        min_run_s = _MIN_RUN_PER_ROUND_TRIP * self._round_trip_s(sequence)
        return now - sequence.since_s < min_run_s

    def _is_deferred(self, victim: SequenceState) -> bool:
        """Whether a sequence ends sooner than it could be out of the way and back."""
        remaining_s = self._pool.policy.remaining_s(victim)
        if remaining_s is None:
            return False
        recompute_s = self._profile.prefill_s(len(victim.tokens))
        swap_s = self._round_trip_s(victim) if self._has_tiers else recompute_s
        return remaining_s < min(recompute_s, swap_s)

    def _recover(self, sequence: SequenceState, problem: str, now: float) -> None:
        self._pool.recompute(sequence, now)
        sequence.request.last_preemption += f"; then dropped: {problem}"
