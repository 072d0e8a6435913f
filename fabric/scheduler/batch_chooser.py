"""Which sequences of one model the next iteration may compute."""

from dataclasses import dataclass

from fabric.scheduler.lane import Lane
from fabric.scheduler.request import SequenceState, SequenceStatus
from fabric.scheduler.request_pool import RequestPool
from fabric.scheduler.room import Room
from fabric.scheduler.settings import SchedulerConfig

_RUNNING = SequenceStatus.RUNNING


@dataclass(frozen=True, slots=True)
class Shortage:
    """The first sequence that waits found ``num_free`` blocks, and needs ``num_needed``."""

    key: int
    num_free: int
    num_needed: int
    since_s: float


class BatchChooser:
    """Takes one model's sequences in their order, and brings in those that wait.

    ``admits`` is whether any may be brought in. ``prefix_query_tokens`` of prompts were looked up
    in the prefix cache, ``prefix_hit_tokens`` found.
    """

    def __init__(self, config: SchedulerConfig, lane: Lane, pool: RequestPool, room: Room) -> None:
        self.admits = True
        self.prefix_hit_tokens = 0
        self.prefix_query_tokens = 0
        self._config = config
        self.lane = lane
        self._kv = lane.kv
        self._pool = pool
        self._room = room
        self._num_spare_blocks = int(config.watermark * lane.kv.num_blocks)
        self._shortage: Shortage | None = None

    def next_order(self) -> tuple[float, ...] | None:
        """The order of the sequence for whose sake the model would run next; None: it can't.

        One that waits counts unless there were too few blocks for it and there are no more now.
        """
        best = None
        for item in self.lane.running:
            if item.num_ready_tokens > item.num_scheduled_tokens:
                best = item.order
                break
        head = self._head()
        if head is None or (best is not None and best < head.order):
            return best
        short = self._shortage
        is_short = short is not None and (
            short.key == head.key and self._kv.num_free_blocks <= short.num_free
        )
        return best if is_short else head.order

    @property
    def shortage(self) -> Shortage | None:
        """What the sequence that waits first lacked when it was last tried, if it still waits."""
        head = self.lane.waiting.peek() if self._shortage else None
        is_first = head is not None and self._shortage and head.key == self._shortage.key
        return self._shortage if is_first else None

    def choose(self, now: float) -> list[SequenceState]:
        """The sequences that the next iteration may compute, in their order.

        Those that wait come in as their turn comes: all by themselves if the policy is not
        preemptive, else ahead of whoever runs and comes after them.
        """
        lane, policy, residents = self.lane, self._pool.policy, self.lane.running.copy()
        if self._nobody_joins(residents):
            return residents[: self._config.max_num_seqs]
        num_arriving = lane.num_slots - sum(sequence.num_samples for sequence in residents)
        num_slots, budget = self._config.max_num_seqs, self._config.max_num_batched_tokens
        chosen: list[SequenceState] = []
        num_growing = 0
        may_admit, position = self.admits and policy.may_admit(len(residents)), 0
        is_preemptive = policy.is_preemptive
        while num_slots > 0:
            resident = residents[position] if position < len(residents) else None
            may_come = may_admit and (resident is None or is_preemptive)
            head = self._head() if may_come else None
            if head is not None and (resident is None or head.order < resident.order):
                fits = head.num_samples + num_arriving <= num_slots and budget > 0
                num_spare = self._num_spare_blocks if residents or chosen else 0
                may_admit = fits and self._bring_in(head, num_spare + num_growing, now)
                if not may_admit:
                    continue
                if head.status is not _RUNNING:
                    num_arriving += head.num_samples
                    continue
                sequence = head
            elif resident is None:
                break
            else:
                sequence, position = resident, position + 1
                if sequence.status is not _RUNNING:
                    continue
                num_growing += self._grows(sequence)
            chosen.append(sequence)
            num_slots -= sequence.num_samples
            budget -= min(sequence.num_left, budget)
        return chosen

    def _head(self) -> SequenceState | None:
        """The first of those that wait, if it may be brought in.

        One that lost its KV while in flight first gets the tokens that it was given there.
        """
        head = self.lane.waiting.peek() if self.admits else None
        return None if head is None or head.num_pending else head

    def _nobody_joins(self, residents: list[SequenceState]) -> bool:
        """Whether plainly those that rank first run and nobody joins them: the usual case."""
        lane, num_seqs = self.lane, self._config.max_num_seqs
        if lane.num_slots != len(residents):
            return False
        head = self._head()
        if head is None:
            return True
        if len(residents) < num_seqs:
            return False
        return not self._pool.policy.is_preemptive or residents[num_seqs - 1].order < head.order

    def _bring_in(self, sequence: SequenceState, num_spare: int, now: float) -> bool:
        """Give the first of those that wait its blocks, or begin to; False if there are too few."""
        if self._try_to_bring_in(sequence, num_spare, now):
            return True
        num_needed = self._kv.num_blocks_for(self._num_reserved_tokens(sequence)) + num_spare
        if self._pool.policy.is_preemptive:
            self._room.make(sequence, num_needed, now)
            if self._try_to_bring_in(sequence, num_spare, now):
                return True
        before = self._shortage
        since_s = before.since_s if before and before.key == sequence.key else now
        self._shortage = Shortage(sequence.key, self._kv.num_free_blocks, num_needed, since_s)
        return False

    def _try_to_bring_in(self, sequence: SequenceState, num_spare: int, now: float) -> bool:
        pool, kv = self._pool, self._kv
        num_tokens = self._num_reserved_tokens(sequence)
        if sequence.status is SequenceStatus.PARKED:
            return pool.fetch(sequence, num_tokens, num_spare, now)
        cached = kv.find_cached(sequence.chain, len(sequence.tokens))
        if not kv.can_admit(num_tokens, cached, num_spare):
            return False
        pool.admit(sequence, cached, now)
        self._note_admission(sequence, now)
        allocation = kv.allocate(sequence.key, num_tokens, sequence.num_computed_tokens)
        assert allocation is not None
        return True

    def _num_reserved_tokens(self, sequence: SequenceState) -> int:
        """For how many tokens it takes blocks; the last possible token never has KV."""
        num_wanted = self._pool.policy.num_reserved_tokens(sequence)
        return max(len(sequence.tokens), min(num_wanted, self.lane.spec.max_model_len - 1))

    def _grows(self, sequence: SequenceState) -> bool:
        """Whether a sequence's next token needs another block."""
        num_before = sequence.num_ready_tokens - 1
        is_decode = sequence.num_scheduled_tokens == num_before
        return is_decode and num_before % self._kv.block_size == 0

    def _note_admission(self, sequence: SequenceState, now: float) -> None:
        request = sequence.request
        if request.admitted_s is not None:
            return
        request.admitted_s = now
        request.load_s = self.lane.absent_until_s(now) - request.absent_s
        request.cached_tokens = sequence.num_computed_tokens
        self.prefix_hit_tokens += request.cached_tokens
        self.prefix_query_tokens += sequence.num_prompt_tokens
