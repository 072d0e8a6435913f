"""All live requests, and the only ways in which their sequences change state."""

from bisect import insort
from collections.abc import Iterable, Sequence
from operator import attrgetter

from fabric.core.errors import RequestError
from fabric.core.request import FinishReason, GenerationRequest
from fabric.kv.prefix import PrefixChain, root_hash
from fabric.kv.table import Residence
from fabric.scheduler.fairness import Fairness
from fabric.scheduler.lane import Lane, ScheduledModel
from fabric.scheduler.lengths import LengthEstimator
from fabric.scheduler.output import RequestEnd
from fabric.scheduler.pace import Pace
from fabric.scheduler.policy import Policy, Rank
from fabric.scheduler.request import RequestState, SequenceState, SequenceStatus
from fabric.scheduler.waiting import DeadlineQueue

_BY_ORDER = attrgetter("order")
_STATUS_OF = {
    Residence.RESIDENT: SequenceStatus.RUNNING,
    Residence.COPYING_OUT: SequenceStatus.COPYING_OUT,
    Residence.PARKED: SequenceStatus.PARKED,
    Residence.COPYING_IN: SequenceStatus.COPYING_IN,
}


class RequestPool:
    """All live requests of all models, and the only ways in which they change places.

    ``ended`` are the requests whose end nobody has taken yet. One policy orders the sequences of
    all ``lanes``.
    """

    def __init__(
        self,
        models: Sequence[ScheduledModel],
        policy: Policy,
        lengths: LengthEstimator,
        fairness: Fairness,
    ) -> None:
        self.policy = policy
        self.lanes = tuple(Lane(number, spec) for number, spec in enumerate(models))
        self.deadlines = DeadlineQueue()
        self.pace = Pace()
        self.requests: dict[str, RequestState] = {}
        self.sequences: dict[int, SequenceState] = {}
        self.ended: list[RequestEnd] = []
        self.num_preemptions = 0
        self.num_recomputed_tokens = 0
        self._numbers = {lane.model: lane.number for lane in self.lanes}
        self._lengths = lengths
        self._fairness = fairness
        self._num_requests = 0
        self._num_keys = 0

    @property
    def num_slots(self) -> int:
        """Running sequences and those that arrive, of all models."""
        return sum(lane.num_slots for lane in self.lanes)

    def lane_of(self, sequence: SequenceState) -> Lane:
        """What belongs to a sequence's model."""
        return self.lanes[sequence.request.lane]

    def lane_named(self, model: str) -> Lane | None:
        """What belongs to a model, if it is one of the group's."""
        number = self._numbers.get(model)
        return None if number is None else self.lanes[number]

    def add(self, source: GenerationRequest, lane: Lane, now: float) -> None:
        """Let a new request wait, as one sequence."""
        self._num_requests += 1
        request = RequestState(source, self._num_requests, lane.number, now)
        request.absent_s = lane.absent_until_s(now)
        lane.num_requests += 1
        lane.num_queued_tokens += len(source.prompt_token_ids)
        tokens = list(source.prompt_token_ids)
        root = root_hash(source.model, source.cache_salt)
        chain = PrefixChain(tokens, lane.kv.block_size, root)
        sequence = SequenceState(self._next_key(), 0, request, tokens, chain)
        sequence.num_samples = source.sampling.n
        sequence.max_num_tokens = min(sequence.max_num_tokens, lane.spec.max_model_len)
        self.requests[source.request_id] = request
        self.deadlines.push(request)
        self._enroll(sequence, now)
        self._place(sequence, SequenceStatus.WAITING, now)

    def admit(self, sequence: SequenceState, cached: list[int], now: float) -> None:
        """Let a waiting sequence run, from its cached blocks on."""
        kv = self.lane_of(sequence).kv
        kv.open(sequence.key, sequence.chain, cached)
        num_cached = len(cached) * kv.block_size
        sequence.lose(num_cached)
        num_recomputed = max(0, sequence.num_lost_tokens - num_cached)
        sequence.num_lost_tokens = 0
        sequence.request.recomputed_tokens += num_recomputed
        self.num_recomputed_tokens += num_recomputed
        self._place(sequence, SequenceStatus.RUNNING, now)

    def recompute(self, sequence: SequenceState, now: float) -> None:
        """Take all of a sequence's blocks; it waits to be computed again with its tokens.

        It may be in flight: workers run iterations in order, and moves between them, so they are
        done with its blocks before anything that is ordered later touches them.
        """
        self.lane_of(sequence).kv.free(sequence.key)
        self._count_preemption(sequence)
        sequence.num_lost_tokens = sequence.num_computed_tokens
        self._forget(sequence)
        sequence.lose()
        self._place(sequence, SequenceStatus.WAITING, now)

    def num_parkable(self, sequence: SequenceState) -> int:
        """How many tokens will have KV when iterations in flight are over, before which none moves.

        Tokens that are not known yet don't count, nor do iterations that can still fail. Siblings
        are drawn again, so the token that they are drawn from is to be computed again.
        """
        if self.lane_of(sequence).is_arriving:
            return sequence.num_computed_tokens
        num_tokens = len(sequence.tokens) - (sequence.num_samples > 1)
        return min(sequence.num_scheduled_tokens, num_tokens)

    def park(self, sequence: SequenceState, now: float) -> bool:
        """Begin to move a running sequence off the device; False, and no change: no room."""
        num_tokens = self.num_parkable(sequence)
        if not self.lane_of(sequence).kv.park(sequence.key, num_tokens):
            return False
        self._count_preemption(sequence)
        self._forget(sequence)
        sequence.lose(num_tokens)
        self.follow(sequence, now)
        return True

    def fetch(self, sequence: SequenceState, num_tokens: int, num_spare: int, now: float) -> bool:
        """Begin to move a parked sequence onto the device; False, and no change: no room."""
        if not self.lane_of(sequence).kv.fetch(sequence.key, num_tokens, num_spare):
            return False
        self.follow(sequence, now)
        return True

    def resume(self, sequence: SequenceState, now: float) -> bool:
        """Let a sequence run again that was to leave but is on the device still."""
        if not self.lane_of(sequence).kv.resume(sequence.key):
            return False
        self.follow(sequence, now)
        return True

    def follow(self, sequence: SequenceState, now: float) -> None:
        """Put a sequence to where its KV is."""
        residence = self.lane_of(sequence).kv.residence(sequence.key)
        self._place(sequence, _STATUS_OF[residence], now)

    def fork(self, parent: SequenceState, now: float) -> list[SequenceState]:
        """Make the siblings of a sequence that has computed its prompt; they don't run yet."""
        self.lane_of(parent).num_slots -= parent.num_samples - 1
        children = [parent.fork(self._next_key(), i) for i in range(1, parent.num_samples)]
        parent.num_samples = 1
        for child in children:
            self._enroll(child, now)
        return children

    def run_fork(self, parent: SequenceState, child: SequenceState, now: float) -> None:
        """Let a new sibling run on its parent's blocks."""
        self.lane_of(parent).kv.fork(parent.key, child.key, child.chain)
        self._place(child, SequenceStatus.RUNNING, now)

    def rerank(self, sequence: SequenceState, rank: Rank) -> None:
        """Give a sequence another rank."""
        if rank != sequence.rank:
            self._reorder(sequence, rank)

    def charge(self, shares: Iterable[tuple[SequenceState, int]], elapsed_s: float) -> None:
        """Count an iteration of (sequence, tokens computed) as service to models and tenants."""
        for sequence in self._fairness.charge(shares, elapsed_s):
            self._reorder(sequence, sequence.rank)

    def change_policy(self, policy: Policy, now: float) -> None:
        """Order all live sequences anew."""
        self.policy = policy
        for sequence in self.sequences.values():
            self.rerank(sequence, policy.enroll(sequence, now))

    def finish(self, sequence: SequenceState, now: float) -> None:
        """End a sequence by itself, and its request if it was the last; learn how long it was."""
        request = sequence.request
        num_output_tokens = len(sequence.tokens) - sequence.num_prompt_tokens
        self._lengths.observe(request.source.model, request.source.tenant, num_output_tokens)
        self._drop(sequence, now)
        request.unfinished.discard(sequence.index)
        if not request.unfinished:
            self._end(request, now, None, FinishReason.STOP)

    def abort(
        self, request: RequestState, now: float, error: RequestError, reason: FinishReason
    ) -> None:
        """End a request and all of its sequences, wherever they are."""
        for sequence in list(request.sequences.values()):
            self._drop(sequence, now)
        self._end(request, now, error, reason)

    def _next_key(self) -> int:
        self._num_keys += 1
        return self._num_keys

    def _reorder(self, sequence: SequenceState, rank: Rank) -> None:
        if sequence.status is SequenceStatus.RUNNING:
            running = self.lane_of(sequence).running
            running.remove(sequence)
            sequence.set_place(rank)
            insort(running, sequence, key=_BY_ORDER)
            return
        sequence.set_place(rank)
        if sequence.ticket:
            waiting = self.lane_of(sequence).waiting
            waiting.remove(sequence)
            waiting.push(sequence)

    def _enroll(self, sequence: SequenceState, now: float) -> None:
        sequence.turn = self._fairness.enter(sequence)
        sequence.set_place(self.policy.enroll(sequence, now))
        sequence.request.sequences[sequence.index] = sequence
        self.sequences[sequence.key] = sequence

    def _place(self, sequence: SequenceState, status: SequenceStatus, now: float) -> None:
        """Move a sequence from one place to another, and count the time that it was away."""
        before, lane = sequence.status, self.lane_of(sequence)
        if before is status:
            return
        if before is SequenceStatus.RUNNING:
            lane.running.remove(sequence)
        elif sequence.ticket:
            lane.waiting.remove(sequence)
        if before in _IS_AWAY:
            del lane.away[sequence.key]
            sequence.request.swapped_s += now - sequence.since_s
        lane.num_slots += sequence.num_samples * (_HAS_SLOT[status] - _HAS_SLOT[before])
        sequence.status = status
        sequence.since_s = now
        if status is SequenceStatus.RUNNING:
            insort(lane.running, sequence, key=_BY_ORDER)
        elif status in _WAITS:
            lane.waiting.push(sequence)
        if status in _IS_AWAY:
            lane.away[sequence.key] = sequence

    def _count_preemption(self, sequence: SequenceState) -> None:
        if sequence.status is SequenceStatus.RUNNING:
            sequence.num_preemptions += 1
            sequence.num_preempted_tokens = len(sequence.tokens)
            sequence.request.num_preemptions += 1
            self.num_preemptions += 1

    def _forget(self, sequence: SequenceState) -> None:
        if sequence.num_known_tokens:
            self.lane_of(sequence).released.append(sequence.key)

    def _drop(self, sequence: SequenceState, now: float) -> None:
        if sequence.status not in (SequenceStatus.WAITING, SequenceStatus.NEW):
            self.lane_of(sequence).kv.free(sequence.key)
        self._forget(sequence)
        self._place(sequence, SequenceStatus.FINISHED, now)
        self.policy.leave(sequence, now)
        self._fairness.leave(sequence)
        del self.sequences[sequence.key]
        del sequence.request.sequences[sequence.index]

    def _end(
        self, request: RequestState, now: float, error: RequestError | None, reason: FinishReason
    ) -> None:
        lane = self.lanes[request.lane]
        lane.num_requests -= 1
        if request.first_token_s is None:
            lane.num_queued_tokens -= len(request.source.prompt_token_ids)
        if request.admitted_s is None:
            request.load_s = lane.absent_until_s(now) - request.absent_s
        self.ended.append(request.end(now, error, reason))
        request.unfinished.clear()
        del self.requests[request.source.request_id]
        self.deadlines.trim(len(self.requests))
        self.pace.note_end(now)


_IS_AWAY = (SequenceStatus.COPYING_OUT, SequenceStatus.PARKED, SequenceStatus.COPYING_IN)
_WAITS = (SequenceStatus.WAITING, SequenceStatus.PARKED)
_HAS_SLOT = {
    status: status in (SequenceStatus.RUNNING, SequenceStatus.COPYING_IN)
    for status in SequenceStatus
}
