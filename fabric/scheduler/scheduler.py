"""What to compute in each iteration, and what becomes of the tokens that it gives."""

from collections.abc import Iterable, Sequence
from itertools import groupby

from fabric.core.errors import (
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    RequestCancelled,
)
from fabric.core.profile import Profile
from fabric.core.request import FinishReason, GenerationRequest, LoadReport, StopMatch
from fabric.core.status import RequestStatus
from fabric.kv.manager import KVCacheManager
from fabric.kv.transfer import BlockOrders, Direction, Tier, TransferResult
from fabric.scheduler.admission import check_fits
from fabric.scheduler.batch_chooser import BatchChooser
from fabric.scheduler.explain import explain
from fabric.scheduler.lengths import LengthEstimator
from fabric.scheduler.output import (
    RequestEnd,
    SampledTokens,
    SchedulerOutput,
    SequenceUpdate,
    StepResult,
)
from fabric.scheduler.plan import StepPlan
from fabric.scheduler.policies import PolicyConfig, make_policy
from fabric.scheduler.policy import Policy
from fabric.scheduler.request import SequenceState, SequenceStatus
from fabric.scheduler.request_pool import RequestPool
from fabric.scheduler.settings import SchedulerConfig
from fabric.scheduler.stopping import ending_of
from fabric.scheduler.swapper import Swapper


class Scheduler:
    """Decides each iteration: the sequences that rank first, in one token budget.

    A sequence is known by how many of its tokens have KV; whether the rest is a prompt, a chunk
    of one, or the last sampled token makes no difference. Blocks for all of a sequence's tokens
    are taken at its admission, so prompts that are half computed never compete for blocks. When
    blocks run out, the sequence that ranks last gives up its own: they are moved to a tier, or
    dropped and recomputed later, whichever is cheaper. Under a preemptive policy sequences that
    wait also take the places of those that rank after them.

    Source: Orca (Yu et al., OSDI 2022), sections 3.1 and 4.1; vLLM (Kwon et al., SOSP 2023),
    section 4.5; chunked prefill: Sarathi-Serve (Agrawal et al., OSDI 2024), section 4; preemption
    at token granularity: FastServe (Wu et al.), section 4.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        kv: KVCacheManager,
        eos_token_ids: frozenset[int],
        policy: Policy | None = None,
        profile: Profile | None = None,
    ) -> None:
        """Make a scheduler without requests.

        Args:
            config: Its limits.
            kv: The blocks that it gives out.
            eos_token_ids: The tokens that end a sequence.
            policy: Who goes first; None: the one that ``config`` names.
            profile: How long iterations and copies take; None: a rough guess.
        """
        self._config = config
        self._kv = kv
        self._eos_token_ids = eos_token_ids
        self._profile = profile or Profile.flat(0.01, 0.0005)
        self._lengths = LengthEstimator()
        self._pool = RequestPool(kv, policy or self._make_policy(config.policy), self._lengths)
        self._swapper = Swapper(config, kv, self._pool, self._profile)
        self._chooser = BatchChooser(config, kv, self._pool, self._swapper)
        self._step = 0
        self._num_steps = 0
        self._num_tokens = 0
        self._now = 0.0
        self._updated_s = 0.0
        self._starts_s: dict[int, float] = {}
        self._orders = BlockOrders()
        self._plan = StepPlan(config.max_num_batched_tokens)

    @property
    def has_work(self) -> bool:
        """Whether a request is unfinished, its end not taken yet, or a copy under way."""
        return bool(self._pool.requests or self._pool.ended or self._swapper.num_under_way)

    @property
    def num_transfers(self) -> int:
        """Transfers under way that sequences may wait for."""
        return self._swapper.num_under_way

    def waits_for_copies(self, now: float) -> bool:
        """Whether transfers under way are to be over before anything else is computed."""
        if self._config.swap != "blocking":
            return False
        self._swapper.abandon_late(now)
        return self._swapper.num_under_way > 0

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
        self._swapper.note_arrival(len(request.prompt_token_ids), now)

    def cancel(self, request_id: str) -> None:
        """End a request and free its blocks; it may have ended already."""
        request = self._pool.requests.get(request_id)
        if request is not None:
            error = RequestCancelled("the request was cancelled")
            self._pool.abort(request, self._now, error, FinishReason.CANCELLED)

    def preempt(self, request_id: str, swap: bool = False) -> None:
        """Make a request's running sequences give up their blocks.

        With ``swap`` they are moved off the device if there is room, else dropped.
        """
        request = self._pool.requests.get(request_id)
        for sequence in list(request.sequences.values()) if request else ():
            if sequence.status is SequenceStatus.RUNNING:
                sequence.request.last_preemption = "it was told to"
                has_kv = swap and sequence.num_computed_tokens > 0
                if not has_kv or not self._pool.park(sequence, self._now):
                    self._pool.recompute(sequence, self._now)

    def set_policy(self, config: PolicyConfig, now: float) -> None:
        """Order all requests, those that run among them, by another policy from now on.

        Raises:
            ConfigError: The policy can't be told so.
        """
        self._pool.change_policy(self._make_policy(config), now)

    def schedule(self, now: float) -> SchedulerOutput:
        """Choose what the next iteration computes, after ending requests whose time is over.

        Orders that :meth:`take_orders` then gives are due before it.
        """
        self._now = now
        self._end_expired(now)
        self._swapper.abandon_late(now)
        for sequence, rank in self._pool.policy.promote(now):
            self._pool.rerank(sequence, rank)
        plan = StepPlan(self._config.max_num_batched_tokens)
        self._plan_sequences(plan, self._chooser.choose(now))
        self._swapper.move_ahead(plan, now)
        self._swapper.note_plan(plan, now)
        self._plan = plan
        self._step += 1
        self._orders = self._swapper.take_orders(now)
        # An empty iteration never reaches the workers, so what they are to forget waits.
        released = tuple(self._pool.released) if plan else ()
        if plan:
            self._pool.released.clear()
            self._starts_s[self._step] = now
        return plan.finish(self._step, self._kv, released)

    def take_orders(self) -> BlockOrders:
        """What workers are to do with blocks before the iteration scheduled last."""
        orders, self._orders = self._orders, BlockOrders()
        return orders

    def note_stall(self, seconds: float) -> None:
        """Count time in which nothing could be computed because of copies."""
        self._swapper.stall_s += seconds

    def finish_transfers(self, results: Sequence[TransferResult], now: float) -> None:
        """Take in transfers that are over, done or failed."""
        self._swapper.finish(results, now)

    def update_from_output(
        self, output: SchedulerOutput, result: StepResult, now: float
    ) -> list[SequenceUpdate]:
        """Take in what an iteration computed.

        Results for sequences that ended or were preempted in the meantime are dropped.
        """
        self._now = now
        elapsed_s = now - max(self._starts_s.pop(output.step, now), self._updated_s)
        self._updated_s = now
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
            if sequence.status is SequenceStatus.RUNNING:
                rank = self._pool.policy.note_run(sequence, elapsed_s, now)
                self._pool.rerank(sequence, rank)
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

    def explain(self, now: float) -> tuple[RequestStatus, ...]:
        """Where each live request is, why it was preempted, and what that has cost."""
        return explain(self._pool, self._kv, self._plan, now)

    def report(self) -> LoadReport:
        """The load at this moment; a request with any running sequence counts as running."""
        pool, kv, moved = self._pool, self._kv, self._swapper.bytes_moved
        running = {sequence.request.number for sequence in pool.running}
        swapped = {sequence.request.number for sequence in pool.away.values()} - running
        return LoadReport(
            num_running=len(running),
            num_waiting=len(pool.requests) - len(running) - len(swapped),
            num_free_blocks=kv.num_free_blocks,
            num_blocks=kv.num_blocks,
            num_cached_blocks=kv.num_cached_blocks,
            num_steps=self._num_steps,
            num_tokens=self._num_tokens,
            num_preemptions=pool.num_preemptions,
            prefix_hit_tokens=self._chooser.prefix_hit_tokens,
            prefix_query_tokens=self._chooser.prefix_query_tokens,
            policy=pool.policy.name,
            num_swapped=len(swapped),
            num_host_blocks=kv.num_parked_blocks(Tier.HOST),
            num_disk_blocks=kv.num_parked_blocks(Tier.DISK),
            swapped_out_bytes=moved[Direction.OUT],
            swapped_in_bytes=moved[Direction.IN],
            num_failed_transfers=self._swapper.num_failed,
            num_recomputed_tokens=pool.num_recomputed_tokens,
            stall_s=self._swapper.stall_s,
        )

    def _make_policy(self, config: PolicyConfig) -> Policy:
        return make_policy(config, self._profile, self._config.max_num_seqs, self._lengths)

    def _end_expired(self, now: float) -> None:
        for request in self._pool.deadlines.pop_expired(now):
            error = DeadlineExceeded(f"{request.source.timeout_s} s were over before it finished")
            self._pool.abort(request, now, error, FinishReason.DEADLINE)

    def _plan_sequences(self, plan: StepPlan, chosen: list[SequenceState]) -> None:
        """Plan the chosen sequences, decodes before prompts.

        Under a preemptive policy nobody takes tokens from those of a better priority.
        """
        classes: Iterable[Sequence[SequenceState]] = (chosen,)
        if chosen and self._pool.policy.is_preemptive:
            classes = (tuple(sequences) for _, sequences in groupby(chosen, _priority_of))
        num_decodes = -(-len(chosen) // self._config.num_batches)
        for sequences in classes:
            num_decodes = self._plan_class(plan, sequences, num_decodes)

    def _plan_class(
        self, plan: StepPlan, sequences: Sequence[SequenceState], num_decodes: int
    ) -> int:
        prefills = []
        for sequence in sequences:
            num_left = sequence.num_left
            if num_left > 1:
                prefills.append(sequence)
            elif num_left and plan.budget and num_decodes and _is_running(sequence):
                num_decodes -= 1
                self._plan_tokens(plan, sequence, 1)
        for sequence in prefills:
            if plan.budget and _is_running(sequence):
                self._plan_tokens(plan, sequence, min(sequence.num_left, plan.budget))
        return num_decodes

    def _plan_tokens(self, plan: StepPlan, sequence: SequenceState, num_new_tokens: int) -> None:
        """Find room for a running sequence's next tokens, at the cost of others if need be."""
        start, kv = sequence.num_scheduled_tokens, self._kv
        while True:
            allocation = kv.allocate(sequence.key, start + num_new_tokens, start)
            if allocation is not None:
                plan.add(sequence, num_new_tokens, allocation)
                return
            if kv.num_leaving_blocks:
                return
            victim = self._pool.running[-1]
            plan.drop(victim.key)
            self._swapper.preempt(victim, "blocks ran out", self._now)
            if victim is sequence:
                return

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
                self._pool.run_fork(parent, child, now)
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


def _priority_of(sequence: SequenceState) -> int:
    return sequence.request.source.priority


def _is_running(sequence: SequenceState) -> bool:
    return sequence.status is SequenceStatus.RUNNING
