"""The scheduler's own state of a request and of its sequences."""

from enum import Enum

from fabric.core.errors import RequestError
from fabric.core.request import FinishReason, GenerationRequest, Timing, Usage
from fabric.kv.prefix import PrefixChain
from fabric.scheduler.output import NewSequence, RequestEnd

NEVER = 2**63


class SequenceStatus(Enum):
    """Where a sequence is.

    A waiting one has no KV. A running one has all of it on the device, whether or not the next
    iteration computes it. The others' is in a tier, or on its way.
    """

    NEW = "new"
    WAITING = "waiting"
    RUNNING = "running"
    COPYING_OUT = "copying_out"
    PARKED = "parked"
    COPYING_IN = "copying_in"
    FINISHED = "finished"


class RequestState:
    """A request from its arrival to its end; times are seconds on the caller's clock.

    ``sequences`` holds the live ones by index, ``unfinished`` the indices that haven't ended:
    before the fork, sequence 0 stands for all of them. ``last_preemption`` says why one of them
    last had to give way. ``lane`` is the number of its model's. In ``load_s`` before it was
    admitted the model's weights were not on the device; they had been off it for ``absent_s`` in
    all when it came.
    """

    __slots__ = (
        "absent_s", "admitted_s", "arrival_s", "cached_tokens", "deadline_s", "first_token_s",
        "lane", "last_preemption", "load_s", "num_output_tokens", "num_preemptions", "number",
        "recomputed_tokens", "sequences", "source", "swapped_bytes", "swapped_s", "unfinished",
    )  # fmt: skip

    def __init__(self, source: GenerationRequest, number: int, lane: int, now: float) -> None:
        self.source = source
        self.number = number
        self.lane = lane
        self.load_s = 0.0
        self.absent_s = 0.0
        self.arrival_s = now
        self.deadline_s = None if source.timeout_s is None else now + source.timeout_s
        self.admitted_s: float | None = None
        self.first_token_s: float | None = None
        self.cached_tokens = 0
        self.num_output_tokens = 0
        self.num_preemptions = 0
        self.last_preemption = ""
        self.swapped_s = 0.0
        self.swapped_bytes = 0
        self.recomputed_tokens = 0
        self.sequences: dict[int, SequenceState] = {}
        self.unfinished = set(range(source.sampling.n))

    def end(self, now: float, error: RequestError | None, reason: FinishReason) -> RequestEnd:
        """What to tell about the request when it ends; ``reason`` is for unfinished sequences."""
        return RequestEnd(
            request_id=self.source.request_id,
            usage=Usage(
                len(self.source.prompt_token_ids), self.num_output_tokens, self.cached_tokens
            ),
            timing=self.timing(now),
            error=error,
            unfinished=tuple((index, reason) for index in sorted(self.unfinished)),
        )

    def timing(self, now: float) -> Timing:
        """Where its time has gone until now."""
        admitted = now if self.admitted_s is None else self.admitted_s
        first_token = now if self.first_token_s is None else self.first_token_s
        return Timing(
            queue_s=admitted - self.arrival_s,
            prefill_s=first_token - admitted,
            ttft_s=first_token - self.arrival_s,
            decode_s=now - first_token,
            e2e_s=now - self.arrival_s,
            num_preemptions=self.num_preemptions,
            swapped_s=self.swapped_s,
            swapped_bytes=self.swapped_bytes,
            recomputed_tokens=self.recomputed_tokens,
            load_s=self.load_s,
        )


class SequenceState:
    """One sequence of a request: prompt and output tokens, and how many of them have KV.

    ``num_samples`` tokens are sampled when all of its tokens are computed, and so many running
    slots are reserved for it: n for a sequence that is still to fork, else 1.
    ``num_scheduled_tokens`` counts the computed ones and those that iterations in flight compute;
    the first ``num_ready_tokens`` may be scheduled: those it has and, in a scheduler that runs
    ahead, those that iterations in flight sample, but none that can only be its last, at
    ``max_num_tokens``. ``num_pending`` iterations in flight sample for it; while these are of
    before it lost its KV, nothing more of it is scheduled.
    The workers know the first ``num_known_tokens``, none if they don't know the sequence; results
    of iterations before ``first_step``, when they learn of it, are of blocks that it has lost.
    ``num_lost_tokens`` had KV when it was preempted and are to be computed again; it had
    ``num_preempted_tokens`` tokens then. ``since_s`` is when it came to be where it is, and
    ``ticket`` its entry in the waiting queue, 0 for none.

    ``order`` is its place among all sequences of the group: by priority, then by the ``turn`` of
    its model and tenant, then by the rest of the policy's ``rank``.
    """

    __slots__ = (
        "chain", "first_step", "index", "key", "max_num_tokens", "num_computed_tokens",
        "num_known_tokens", "num_lost_tokens", "num_pending", "num_preempted_tokens",
        "num_preemptions", "num_prompt_tokens", "num_ready_tokens", "num_samples",
        "num_scheduled_tokens", "order", "rank", "request", "since_s", "status", "ticket", "tokens",
        "turn",
    )  # fmt: skip

    def __init__(
        self, key: int, index: int, request: RequestState, tokens: list[int], chain: PrefixChain
    ) -> None:
        self.key = key
        self.index = index
        self.request = request
        self.tokens = tokens
        self.chain = chain
        self.num_prompt_tokens = len(request.source.prompt_token_ids)
        self.max_num_tokens = self.num_prompt_tokens + request.source.sampling.max_tokens
        self.num_computed_tokens = 0
        self.num_scheduled_tokens = 0
        self.num_ready_tokens = len(tokens)
        self.num_pending = 0
        self.num_known_tokens = 0
        self.num_samples = 1
        self.num_preemptions = 0
        self.num_lost_tokens = 0
        self.num_preempted_tokens = 0
        self.since_s = request.arrival_s
        self.ticket = 0
        self.status = SequenceStatus.NEW
        self.rank: tuple[float, ...] = ()
        self.turn = 0
        self.order: tuple[float, ...] = ()
        self.first_step = NEVER

    def fork(self, key: int, index: int) -> "SequenceState":
        """A sibling with the same tokens, whose KV exists as far as this one's."""
        tokens = self.tokens.copy()
        child = SequenceState(key, index, self.request, tokens, self.chain.fork(tokens))
        child.num_computed_tokens = self.num_computed_tokens
        child.num_scheduled_tokens = self.num_computed_tokens
        child.max_num_tokens = self.max_num_tokens
        return child

    @property
    def num_left(self) -> int:
        """Tokens that an iteration may be given to compute."""
        return self.num_ready_tokens - self.num_scheduled_tokens

    @property
    def is_on_its_way(self) -> bool:
        """Whether copies that move it on or off the device are under way."""
        return self.status in (SequenceStatus.COPYING_OUT, SequenceStatus.COPYING_IN)

    def set_place(self, rank: tuple[float, ...]) -> None:
        """Take a rank of the policy, in the present turn."""
        self.rank = rank
        self.order = (rank[0], self.turn, *rank[1:])

    def lose(self, num_tokens: int = 0) -> None:
        """Keep only the KV of the first tokens; of results under way, tokens alone are of use."""
        self.num_computed_tokens = num_tokens
        self.num_scheduled_tokens = num_tokens
        self.await_pending()
        self.num_known_tokens = 0
        self.first_step = NEVER

    def await_pending(self) -> None:
        """Let what has lost its KV go on once the tokens are there that are in flight."""
        self.num_ready_tokens = self.num_scheduled_tokens if self.num_pending else len(self.tokens)

    def introduce(self, block_ids: tuple[int, ...]) -> NewSequence:
        """All that the workers must know of the sequence."""
        return NewSequence(
            key=self.key,
            index=self.index,
            token_ids=tuple(self.tokens),
            num_prompt_tokens=self.num_prompt_tokens,
            sampling=self.request.source.sampling,
            block_ids=block_ids,
        )
