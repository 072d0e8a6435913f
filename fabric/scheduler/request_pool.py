"""All live requests, and the only ways in which their sequences change state."""

from bisect import insort
from operator import attrgetter

from fabric.core.errors import RequestError
from fabric.core.request import FinishReason, GenerationRequest
from fabric.kv.manager import KVCacheManager
from fabric.kv.prefix import PrefixChain, root_hash
from fabric.scheduler.output import RequestEnd
from fabric.scheduler.pace import Pace
from fabric.scheduler.policy import Policy
from fabric.scheduler.request import NEVER, RequestState, SequenceState, SequenceStatus
from fabric.scheduler.waiting import DeadlineQueue, WaitingQueue

_BY_RANK = attrgetter("rank")


class RequestPool:
    """Sequences that wait, run and end, with their blocks: running ones hold some, others none.

    ``running`` is in the policy's order. ``num_slots`` counts running sequences, those that a
    fork will add included. ``released`` are the keys that the workers are to forget, ``ended``
    the requests whose end nobody has taken yet.
    """

    def __init__(self, kv: KVCacheManager, policy: Policy) -> None:
        self.running: list[SequenceState] = []
        self.waiting = WaitingQueue()
        self.deadlines = DeadlineQueue()
        self.pace = Pace()
        self.requests: dict[str, RequestState] = {}
        self.sequences: dict[int, SequenceState] = {}
        self.released: list[int] = []
        self.ended: list[RequestEnd] = []
        self.num_slots = 0
        self.num_preemptions = 0
        self._kv = kv
        self._policy = policy
        self._num_requests = 0
        self._num_keys = 0

    def add(self, source: GenerationRequest, now: float) -> None:
        """Let a new request wait, as one sequence."""
        self._num_requests += 1
        request = RequestState(source, self._num_requests, now)
        tokens = list(source.prompt_token_ids)
        root = root_hash(source.model, source.cache_salt)
        chain = PrefixChain(tokens, self._kv.block_size, root)
        sequence = SequenceState(self._next_key(), 0, request, tokens, chain)
        sequence.num_samples = source.sampling.n
        self.requests[source.request_id] = request
        self.deadlines.push(request)
        self._enroll(sequence, now)
        self.waiting.push(sequence)

    def admit(self, sequence: SequenceState, cached: list[int]) -> None:
        """Let the first of the waiting sequences run, from its cached blocks on."""
        popped = self.waiting.pop()
        assert popped is sequence
        self._kv.open(sequence.key, sequence.chain, cached)
        sequence.num_computed_tokens = len(cached) * self._kv.block_size
        sequence.num_scheduled_tokens = sequence.num_computed_tokens
        self._run(sequence)

    def preempt(self, sequence: SequenceState) -> None:
        """Take a running sequence's blocks; it waits to be computed again with its tokens.

        It may be in flight: workers run iterations in order, so they are done with its blocks
        before a later iteration writes to them.
        """
        self._stop_running(sequence)
        sequence.num_computed_tokens = 0
        sequence.num_scheduled_tokens = 0
        sequence.first_step = NEVER
        sequence.num_preemptions += 1
        sequence.request.num_preemptions += 1
        self.num_preemptions += 1
        self.waiting.push(sequence)

    def fork(self, parent: SequenceState, now: float) -> list[SequenceState]:
        """Make the siblings of a sequence that has computed its prompt; they don't run yet."""
        self.num_slots -= parent.num_samples - 1
        children = [parent.fork(self._next_key(), i) for i in range(1, parent.num_samples)]
        parent.num_samples = 1
        for child in children:
            self._enroll(child, now)
        return children

    def run_fork(self, parent: SequenceState, child: SequenceState) -> None:
        """Let a new sibling run on its parent's blocks."""
        self._kv.fork(parent.key, child.key, child.chain)
        self._run(child)

    def finish(self, sequence: SequenceState, now: float) -> None:
        """End a sequence by itself, and its request if it was the last."""
        request = sequence.request
        self._drop(sequence)
        request.unfinished.discard(sequence.index)
        if not request.unfinished:
            self._end(request, now, None, FinishReason.STOP)

    def abort(
        self, request: RequestState, now: float, error: RequestError, reason: FinishReason
    ) -> None:
        """End a request and all of its sequences, wherever they are."""
        for sequence in list(request.sequences.values()):
            self._drop(sequence)
        self._end(request, now, error, reason)

    def _next_key(self) -> int:
        self._num_keys += 1
        return self._num_keys

    def _enroll(self, sequence: SequenceState, now: float) -> None:
        sequence.rank = self._policy.enroll(sequence, now)
        sequence.request.sequences[sequence.index] = sequence
        self.sequences[sequence.key] = sequence

    def _run(self, sequence: SequenceState) -> None:
        sequence.status = SequenceStatus.RUNNING
        self.num_slots += sequence.num_samples
        insort(self.running, sequence, key=_BY_RANK)

    def _stop_running(self, sequence: SequenceState) -> None:
        self.running.remove(sequence)
        self.num_slots -= sequence.num_samples
        self._kv.free(sequence.key)
        if sequence.num_known_tokens:
            sequence.num_known_tokens = 0
            self.released.append(sequence.key)

    def _drop(self, sequence: SequenceState) -> None:
        if sequence.status is SequenceStatus.RUNNING:
            self._stop_running(sequence)
        elif sequence.status is SequenceStatus.WAITING:
            self.waiting.discard(sequence)
        sequence.status = SequenceStatus.FINISHED
        del self.sequences[sequence.key]
        del sequence.request.sequences[sequence.index]

    def _end(
        self, request: RequestState, now: float, error: RequestError | None, reason: FinishReason
    ) -> None:
        self.ended.append(request.end(now, error, reason))
        request.unfinished.clear()
        del self.requests[request.source.request_id]
        self.deadlines.trim(len(self.requests))
        self.pace.note_end(now)
