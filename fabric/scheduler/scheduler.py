"""What to compute in each iteration, and what becomes of the tokens that it gives."""

from dataclasses import dataclass, field
from typing import Literal

from fabric.core.errors import (
    ConfigError,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    RequestCancelled,
)
from fabric.core.request import (
    FinishReason,
    GenerationRequest,
    LoadReport,
    StopMatch,
)
from fabric.kv.manager import KVCacheManager
from fabric.scheduler.admission import check_fits
from fabric.scheduler.output import (
    RequestEnd,
    SampledTokens,
    SchedulerOutput,
    SequenceUpdate,
    StepResult,
)
from fabric.scheduler.plan import StepPlan
from fabric.scheduler.policies import PolicyConfig
from fabric.scheduler.policy import FCFS, Policy
from fabric.scheduler.request import SequenceState, SequenceStatus
from fabric.scheduler.request_pool import RequestPool
from fabric.scheduler.stopping import ending_of


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Limits of one scheduler.

    ``max_num_seqs`` bounds running sequences, ``max_num_batched_tokens`` the tokens of one
    iteration, ``max_num_waiting`` the queue, ``max_model_len`` prompt and output together;
    ``watermark`` is the share of blocks that admission leaves free for those that run.
    ``num_batches`` iterations may be in flight, one for each pipeline stage; the running
    sequences are shared out among them. ``policy`` says who goes first. ``swap`` is when blocks
    move off the device, if there is where to, and ``preemption`` what becomes of a victim; a
    transfer that takes longer than ``transfer_timeout_s`` counts as failed.
    """

    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    max_num_waiting: int = 1024
    watermark: float = 0.01
    max_model_len: int = 2048
    num_batches: int = 1
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    swap: Literal["proactive", "on_demand", "blocking"] = "on_demand"
    preemption: Literal["auto", "swap", "recompute"] = "auto"
    transfer_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_waiting", "max_model_len", "num_batches"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; at least 1 is needed")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"max_num_batched_tokens is {self.max_num_batched_tokens}; each of max_num_seqs = "
                f"{self.max_num_seqs} running sequences needs a token in every iteration"
            )
        if self.transfer_timeout_s <= 0.0:
            raise ConfigError(f"transfer_timeout_s is {self.transfer_timeout_s}; above 0 is needed")
        if not 0.0 <= self.watermark < 1.0:
            raise ConfigError(f"watermark is {self.watermark}; allowed: 0 up to, not with, 1")


class Scheduler:
    """Decides each iteration: running sequences first, then waiting ones, in one token budget.

    A sequence is known by how many of its tokens have KV; whether the rest is a prompt, a chunk
    of one, or the last sampled token makes no difference. When blocks run out, the policy's
    victim gives up all of its own and waits again, to be recomputed later with the tokens that
    it has. Blocks for all of a sequence's tokens are taken at its admission, so prompts that are
    half computed never compete for blocks.

    Source: Orca (Yu et al., OSDI 2022), sections 3.1 and 4.1; vLLM (Kwon et al., SOSP 2023),
    section 4.5; chunked prefill: Sarathi-Serve (Agrawal et al., OSDI 2024), section 4.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        kv: KVCacheManager,
        eos_token_ids: frozenset[int],
        policy: Policy = FCFS(),  # noqa: B008 (a value without state)
    ) -> None:
        self._config = config
        self._kv = kv
        self._eos_token_ids = eos_token_ids
        self._policy = policy
        self._pool = RequestPool(kv, policy)
        self._num_spare_blocks = int(config.watermark * kv.num_blocks)
        self._step = 0
        self._num_steps = 0
        self._num_tokens = 0
        self._prefix_hit_tokens = 0
        self._prefix_query_tokens = 0
        self._now = 0.0

    @property
    def has_work(self) -> bool:
        """Whether a request is unfinished, or its end not taken yet."""
        return bool(self._pool.requests or self._pool.ended)

    def add(self, request: GenerationRequest, now: float) -> None:
        """Queue a request.

        Raises:
            InvalidRequest: It could not be served even if it were alone.
            Overloaded: The queue is full.
        """
        self._now = now
        if request.request_id in self._pool.requests:
            raise InvalidRequest.of("request_id", f"{request.request_id!r} is in use")
        check_fits(request, self._kv, self._config.max_model_len, self._config.max_num_seqs)
        num_waiting = len(self._pool.waiting)
        if num_waiting >= self._config.max_num_waiting:
            raise Overloaded(
                f"{num_waiting} sequences wait already", self._pool.pace.time_for_s(num_waiting)
            )
        self._pool.add(request, now)

    def cancel(self, request_id: str) -> None:
        """End a request and free its blocks; it may have ended already."""
        request = self._pool.requests.get(request_id)
        if request is not None:
            error = RequestCancelled("the request was cancelled")
            self._pool.abort(request, self._now, error, FinishReason.CANCELLED)

    def preempt(self, request_id: str) -> None:
        """Make a request's running sequences give up their blocks, to be recomputed later."""
        request = self._pool.requests.get(request_id)
        for sequence in list(request.sequences.values()) if request else ():
            if sequence.status is SequenceStatus.RUNNING:
                self._pool.preempt(sequence)

    def schedule(self, now: float) -> SchedulerOutput:
        """Choose what the next iteration computes, after ending requests whose time is over."""
        self._now = now
        self._end_expired(now)
        plan = StepPlan(self._config.max_num_batched_tokens)
        if not self._plan_running(plan):
            self._plan_waiting(plan, now)
        self._step += 1
        # An empty iteration never reaches the workers, so what they are to forget waits.
        released = tuple(self._pool.released) if plan else ()
        if plan:
            self._pool.released.clear()
        return plan.finish(self._step, self._kv, released)

    def update_from_output(
        self, output: SchedulerOutput, result: StepResult, now: float
    ) -> list[SequenceUpdate]:
        """Take in what an iteration computed.

        Results for sequences that ended or were preempted in the meantime are dropped.
        """
        self._now = now
        samples = {item.key: item for item in result.sampled}
        updates: list[SequenceUpdate] = []
        for item in output.scheduled:
            sequence = self._pool.sequences.get(item.key)
            if sequence is None or output.step < sequence.first_step:
                continue
            sequence.num_computed_tokens += item.num_new_tokens
            self._num_tokens += item.num_new_tokens
            self._kv.register(item.key, sequence.num_computed_tokens)
            if item.num_samples:
                self._take_samples(sequence, samples[item.key], now, updates)
        self._num_steps += bool(output.scheduled)
        return updates

    def stop(self, key: int, match: StopMatch, now: float) -> None:
        """End a sequence in whose text a stop string was found; it may have ended already."""
        assert match.text is not None
        sequence = self._pool.sequences.get(key)
        if sequence is not None:
            self._pool.finish(sequence, now)

    def take_ended(self) -> list[RequestEnd]:
        """The requests that ended since the last call, however they ended."""
        ended = self._pool.ended
        self._pool.ended = []
        return ended

    def report(self) -> LoadReport:
        """The load at this moment; a request with any running sequence counts as running."""
        num_running = len({sequence.request.number for sequence in self._pool.running})
        return LoadReport(
            num_running=num_running,
            num_waiting=len(self._pool.requests) - num_running,
            num_free_blocks=self._kv.num_free_blocks,
            num_blocks=self._kv.num_blocks,
            num_cached_blocks=self._kv.num_cached_blocks,
            num_steps=self._num_steps,
            num_tokens=self._num_tokens,
            num_preemptions=self._pool.num_preemptions,
            prefix_hit_tokens=self._prefix_hit_tokens,
            prefix_query_tokens=self._prefix_query_tokens,
        )

    def _end_expired(self, now: float) -> None:
        for request in self._pool.deadlines.pop_expired(now):
            error = DeadlineExceeded(f"{request.source.timeout_s} s were over before it finished")
            self._pool.abort(request, now, error, FinishReason.DEADLINE)

    def _plan_running(self, plan: StepPlan) -> bool:
        """Plan the running sequences, decodes before prompts; return whether any was preempted."""
        num_preemptions = self._pool.num_preemptions
        prefills = []
        running = self._pool.running.copy()
        num_decodes = -(-len(running) // self._config.num_batches)
        for sequence in running:
            num_left = len(sequence.tokens) - sequence.num_scheduled_tokens
            if num_left > 1:
                prefills.append(sequence)
            elif num_left and num_decodes and sequence.status is SequenceStatus.RUNNING:
                num_decodes -= 1
                self._plan_tokens(plan, sequence, 1)
        for sequence in prefills:
            if plan.budget and sequence.status is SequenceStatus.RUNNING:
                num_left = len(sequence.tokens) - sequence.num_scheduled_tokens
                self._plan_tokens(plan, sequence, min(num_left, plan.budget))
        return self._pool.num_preemptions > num_preemptions

    def _plan_tokens(self, plan: StepPlan, sequence: SequenceState, num_new_tokens: int) -> None:
        """Find room for a running sequence's next tokens, at the cost of others if need be."""
        start = sequence.num_scheduled_tokens
        while True:
            allocation = self._kv.allocate(sequence.key, start + num_new_tokens, start)
            if allocation is not None:
                plan.add(sequence, num_new_tokens, allocation)
                return
            victim = self._pool.running[-1]
            plan.drop(victim.key)
            self._pool.preempt(victim)
            if victim is sequence:
                return

    def _plan_waiting(self, plan: StepPlan, now: float) -> None:
        """Admit waiting sequences in order, up to the first one that doesn't fit."""
        pool = self._pool
        while plan.budget and (sequence := pool.waiting.peek()):
            if pool.num_slots + sequence.num_samples > self._config.max_num_seqs:
                return
            num_tokens = len(sequence.tokens)
            cached = self._kv.find_cached(sequence.chain, num_tokens)
            num_spare = self._num_spare_blocks if pool.running else 0
            if not self._kv.can_admit(num_tokens, cached, num_spare):
                return
            pool.admit(sequence, cached)
            self._note_admission(sequence, now)
            num_computed = sequence.num_computed_tokens
            allocation = self._kv.allocate(sequence.key, num_tokens, num_computed)
            assert allocation is not None
            plan.add(sequence, min(num_tokens - num_computed, plan.budget), allocation)

    def _note_admission(self, sequence: SequenceState, now: float) -> None:
        request = sequence.request
        if request.admitted_s is not None:
            return
        request.admitted_s = now
        request.cached_tokens = sequence.num_computed_tokens
        self._prefix_hit_tokens += request.cached_tokens
        self._prefix_query_tokens += sequence.num_prompt_tokens

    def _take_samples(
        self,
        sequence: SequenceState,
        sample: SampledTokens,
        now: float,
        updates: list[SequenceUpdate],
    ) -> None:
        if sequence.request.first_token_s is None:
            sequence.request.first_token_s = now
        if sequence.num_samples > 1:
            updates += self._fork(sequence, sample, now)
            return
        update = self._append(sequence, sample, 0)
        updates.append(update)
        if update.finish_reason is not None:
            self._pool.finish(sequence, now)

    def _fork(
        self, parent: SequenceState, sample: SampledTokens, now: float
    ) -> list[SequenceUpdate]:
        """Give each sibling its first token; those that go on share the parent's blocks."""
        family = [parent, *self._pool.fork(parent, now)]
        updates = [self._append(sequence, sample, i) for i, sequence in enumerate(family)]
        ends = [update.finish_reason is not None for update in updates]
        for child, has_ended in zip(family[1:], ends[1:], strict=True):
            if not has_ended:
                self._pool.run_fork(parent, child)
        for sequence, has_ended in zip(family, ends, strict=True):
            if has_ended:
                self._pool.finish(sequence, now)
        return updates

    def _append(self, sequence: SequenceState, sample: SampledTokens, i: int) -> SequenceUpdate:
        """Append the ``i``-th of the sampled tokens to a sequence."""
        request = sequence.request
        first_token = len(sequence.tokens) - sequence.num_prompt_tokens
        sequence.tokens.append(sample.token_ids[i])
        request.num_output_tokens += 1
        reason, match = ending_of(sequence, self._eos_token_ids, self._config.max_model_len)
        return SequenceUpdate(
            request.source.request_id,
            sequence.key,
            sequence.index,
            first_token,
            sample.token_ids[i : i + 1],
            sample.logprobs[i : i + 1],
            reason,
            match,
        )
