"""Which sequences the next iteration may compute."""

from fabric.kv.manager import KVCacheManager
from fabric.scheduler.request import SequenceState, SequenceStatus
from fabric.scheduler.request_pool import RequestPool
from fabric.scheduler.settings import SchedulerConfig
from fabric.scheduler.swapper import Swapper


class BatchChooser:
    """Takes sequences in order of rank, and brings in those that wait.

    ``prefix_query_tokens`` of prompts were looked up in the prefix cache, ``prefix_hit_tokens``
    found.
    """

    def __init__(
        self, config: SchedulerConfig, kv: KVCacheManager, pool: RequestPool, swapper: Swapper
    ) -> None:
        self.prefix_hit_tokens = 0
        self.prefix_query_tokens = 0
        self._config = config
        self._kv = kv
        self._pool = pool
        self._swapper = swapper
        self._num_spare_blocks = int(config.watermark * kv.num_blocks)

    def choose(self, now: float) -> list[SequenceState]:
        """The sequences that the next iteration may compute, in order of rank.

        Those that wait come in as their turn comes: all by themselves if the policy is not
        preemptive, else ahead of whoever runs and ranks after them.
        """
        pool, policy, residents = self._pool, self._pool.policy, self._pool.running.copy()
        if self._nobody_joins(residents):
            return residents[: self._config.max_num_seqs]
        num_arriving = pool.num_slots - sum(sequence.num_samples for sequence in residents)
        num_slots, budget = self._config.max_num_seqs, self._config.max_num_batched_tokens
        chosen: list[SequenceState] = []
        num_growing = 0
        may_admit, position = policy.may_admit(len(residents)), 0
        while num_slots > 0:
            resident = residents[position] if position < len(residents) else None
            head = pool.waiting.peek() if may_admit else None
            if head is not None and (
                resident is None or (policy.is_preemptive and head.rank < resident.rank)
            ):
                fits = head.num_samples + num_arriving <= num_slots and budget > 0
                num_spare = self._num_spare_blocks if residents or chosen else 0
                may_admit = fits and self._bring_in(head, num_spare + num_growing, now)
                if not may_admit:
                    continue
                if head.status is not SequenceStatus.RUNNING:
                    num_arriving += head.num_samples
                    continue
                sequence = head
            elif resident is None:
                break
            else:
                sequence, position = resident, position + 1
                if sequence.status is not SequenceStatus.RUNNING:
                    continue
                num_growing += self._grows(sequence)
            chosen.append(sequence)
            num_slots -= sequence.num_samples
            budget -= min(sequence.num_left, budget)
        return chosen

    def _nobody_joins(self, residents: list[SequenceState]) -> bool:
        """Whether plainly those that rank first run and nobody joins them: the usual case."""
        pool, num_seqs = self._pool, self._config.max_num_seqs
        if pool.num_slots != len(residents):
            return False
        head = pool.waiting.peek()
        if head is None:
            return True
        if len(residents) < num_seqs:
            return False
        return not pool.policy.is_preemptive or residents[num_seqs - 1].rank < head.rank

    def _bring_in(self, sequence: SequenceState, num_spare: int, now: float) -> bool:
        """Give the first of those that wait its blocks, or begin to; False if there are too few."""
        if self._try_to_bring_in(sequence, num_spare, now):
            return True
        policy = self._pool.policy
        if not policy.is_preemptive:
            return False
        num_blocks = self._kv.num_blocks_for(self._num_reserved_tokens(sequence))
        self._swapper.make_room(sequence, num_blocks + num_spare, now)
        return self._try_to_bring_in(sequence, num_spare, now)

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
        return max(len(sequence.tokens), min(num_wanted, self._config.max_model_len - 1))

    def _grows(self, sequence: SequenceState) -> bool:
        """Whether a sequence's next token needs another block."""
        num_tokens = len(sequence.tokens)
        return sequence.num_left == 1 and (num_tokens - 1) % self._kv.block_size == 0

    def _note_admission(self, sequence: SequenceState, now: float) -> None:
        request = sequence.request
        if request.admitted_s is not None:
            return
        request.admitted_s = now
        request.cached_tokens = sequence.num_computed_tokens
        self.prefix_hit_tokens += request.cached_tokens
        self.prefix_query_tokens += sequence.num_prompt_tokens
