"""Takes in what iterations have computed: tokens, ends, forks, and whose service it was."""

from fabric.scheduler.lane import Lane
from fabric.scheduler.load import Totals
from fabric.scheduler.output import SampledTokens, SchedulerOutput, SequenceUpdate, StepResult
from fabric.scheduler.request import SequenceState, SequenceStatus
from fabric.scheduler.request_pool import RequestPool
from fabric.scheduler.stopping import append_token

_RUNNING = SequenceStatus.RUNNING


class Intake:
    """Brings the sequences of an iteration up to date with its result."""

    def __init__(self, pool: RequestPool) -> None:
        self._pool = pool
        self._num_steps = 0
        self._num_tokens = 0
        self._num_superfluous_tokens = 0

    def totals(self, stall_s: float) -> Totals:
        """What has been computed so far."""
        return Totals(self._num_steps, self._num_tokens, self._num_superfluous_tokens, stall_s)

    def note_error(self, model: int, error: str, last_step: int) -> None:
        """Take as void what all of a model's iterations give that were scheduled until now."""
        lane = self._pool.lanes[model]
        lane.last_error, lane.last_void_step = error, last_step

    def take_in(
        self, output: SchedulerOutput, result: StepResult, elapsed_s: float, now: float
    ) -> list[SequenceUpdate]:
        """Bring up to date whoever was part of an iteration, and count it as service."""
        pool, step, lane = self._pool, output.step, self._pool.lanes[output.model]
        is_void = step <= lane.last_void_step
        samples = {} if is_void else {item.key: item for item in result.sampled}
        updates: list[SequenceUpdate] = []
        shares: list[tuple[SequenceState, int]] = []
        sequences, note_run, caches = pool.sequences, pool.policy.note_run, lane.kv.prefix_cache
        for item in output.scheduled:
            key, num_new_tokens = item.key, item.num_new_tokens
            sequence = sequences.get(key)
            if sequence is None:
                self._num_superfluous_tokens += num_new_tokens
                continue
            if item.num_samples:
                sequence.num_pending -= 1
            if step < sequence.first_step:
                self._take_late_sample(lane, sequence, samples.get(key), now, updates)
                continue
            if is_void:
                pool.recompute(sequence, now)
                sequence.request.last_preemption = lane.last_error
                continue
            sequence.num_computed_tokens += num_new_tokens
            self._num_tokens += num_new_tokens
            shares.append((sequence, num_new_tokens))
            if caches:
                lane.kv.register(key, sequence.num_computed_tokens)
            if item.num_samples:
                self._take_samples(lane, sequence, samples[key], now, updates)
            if sequence.status is _RUNNING:
                rank = note_run(sequence, elapsed_s, now)
                if rank is not sequence.rank:
                    pool.rerank(sequence, rank)
        pool.charge(shares, elapsed_s)
        self._num_steps += bool(output.scheduled)
        return updates

    def _take_samples(
        self,
        lane: Lane,
        sequence: SequenceState,
        sample: SampledTokens,
        now: float,
        updates: list[SequenceUpdate],
    ) -> None:
        if sequence.request.first_token_s is None:
            sequence.request.first_token_s = now
            lane.num_queued_tokens -= sequence.num_prompt_tokens
        if sequence.num_samples > 1:
            updates += self._fork(lane, sequence, sample, now)
            return
        update = append_token(lane, sequence, sample.token_ids, sample.logprobs)
        updates.append(update)
        if update.finish_reason is not None:
            self._pool.finish(sequence, now)

    def _take_late_sample(
        self,
        lane: Lane,
        sequence: SequenceState,
        sample: SampledTokens | None,
        now: float,
        updates: list[SequenceUpdate],
    ) -> None:
        """Take the token of a sequence that was preempted in flight; siblings are drawn again."""
        if sample is not None and sequence.num_samples == 1:
            self._take_samples(lane, sequence, sample, now, updates)
        sequence.await_pending()

    def _fork(
        self, lane: Lane, parent: SequenceState, sample: SampledTokens, now: float
    ) -> list[SequenceUpdate]:
        """Give each sibling its first token; those that go on share the parent's blocks."""
        family = [parent, *self._pool.fork(parent, now)]
        updates = [
            append_token(lane, sequence, sample.token_ids[i : i + 1], sample.logprobs[i : i + 1])
            for i, sequence in enumerate(family)
        ]
        ends = [update.finish_reason is not None for update in updates]
        for child, has_ended in zip(family[1:], ends[1:], strict=True):
            if not has_ended:
                self._pool.run_fork(parent, child, now)
        for sequence, has_ended in zip(family, ends, strict=True):
            if has_ended:
                self._pool.finish(sequence, now)
        return updates
