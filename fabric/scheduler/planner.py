"""Puts an iteration together: whose turn it is, and how many tokens of each sequence."""

from collections.abc import Iterable, Sequence
from itertools import groupby

from fabric.scheduler.batch_chooser import BatchChooser
from fabric.scheduler.plan import StepPlan
from fabric.scheduler.presence import Presence
from fabric.scheduler.request import SequenceState, SequenceStatus
from fabric.scheduler.request_pool import RequestPool
from fabric.scheduler.room import Room
from fabric.scheduler.settings import SchedulerConfig

_RUNNING = SequenceStatus.RUNNING


class Planner:
    """Chooses the model, then its sequences, and finds blocks for their next tokens."""

    def __init__(
        self,
        config: SchedulerConfig,
        pool: RequestPool,
        room: Room,
        choosers: Sequence[BatchChooser],
        presence: Presence,
    ) -> None:
        self._config = config
        self._pool = pool
        self._room = room
        self._choosers = choosers
        self._presence = presence

    def plan(self, now: float) -> StepPlan:
        """The iteration of the model whose best sequence ranks first, of those that can run."""
        budget = self._config.max_num_batched_tokens
        choosers = self._presence.open_of(self._choosers)
        ready = [
            (order, chooser.lane.number)
            for chooser in choosers
            if (order := chooser.next_order()) is not None
        ]
        ready.sort()
        num_parts = self._num_parts(choosers)
        for _, number in ready:
            lane = self._pool.lanes[number]
            plan = StepPlan(lane, budget, self._config.runs_ahead)
            chosen = self._choosers[number].choose(now)
            self._plan_sequences(plan, chosen, num_parts, now)
            if plan:
                return plan
        return StepPlan(self._pool.lanes[ready[-1][1] if ready else 0], budget)

    def _num_parts(self, choosers: Sequence[BatchChooser]) -> int:
        """How many iterations a model's sequences are shared out to.

        Other models' iterations fill the pipeline too, those that are in flight among them.
        """
        num_batches = self._config.num_batches
        if num_batches == 1:
            return 1
        num_busy = sum(1 for chooser in choosers if chooser.lane.num_requests)
        return -(-num_batches // max(1, num_busy))

    def _plan_sequences(
        self, plan: StepPlan, chosen: list[SequenceState], num_parts: int, now: float
    ) -> None:
        """Plan the chosen sequences, decodes before prompts.

        Under a preemptive policy nobody takes tokens from those of a better priority. Decodes are
        shared out to ``num_parts`` iterations in flight.
        """
        classes: Iterable[Sequence[SequenceState]] = (chosen,)
        if self._pool.policy.is_preemptive and not _is_one_class(chosen):
            classes = (tuple(sequences) for _, sequences in groupby(chosen, _priority_of))
        num_decodes = -(-len(chosen) // num_parts)
        for sequences in classes:
            num_decodes = self._plan_class(plan, sequences, num_decodes, now)

    def _plan_class(
        self, plan: StepPlan, sequences: Sequence[SequenceState], num_decodes: int, now: float
    ) -> int:
        prefills = []
        for sequence in sequences:
            num_left = sequence.num_ready_tokens - sequence.num_scheduled_tokens
            if num_left > 1:
                prefills.append(sequence)
            elif num_left and plan.budget and num_decodes and sequence.status is _RUNNING:
                num_decodes -= 1
                self._plan_tokens(plan, sequence, 1, now)
        for sequence in prefills:
            if plan.budget and sequence.status is _RUNNING:
                self._plan_tokens(plan, sequence, min(sequence.num_left, plan.budget), now)
        return num_decodes

    def _plan_tokens(
        self, plan: StepPlan, sequence: SequenceState, num_new_tokens: int, now: float
    ) -> None:
        """Find room for a running sequence's next tokens, at the cost of others if need be."""
        key, start, kv = sequence.key, sequence.num_scheduled_tokens, plan.lane.kv
        while True:
            allocation = kv.allocate(key, start + num_new_tokens, start)
            if allocation is not None:
                plan.add(sequence, num_new_tokens, allocation)
                return
            if self._room.num_leaving:
                return
            victim = self._room.last_running()
            plan.drop(victim.key)
            self._room.preempt(victim, "blocks ran out", now)
            if victim is sequence:
                return


def _is_one_class(chosen: Sequence[SequenceState]) -> bool:
    """Whether all are of one priority, the first part of the order that they are in."""
    return not chosen or _priority_of(chosen[0]) == _priority_of(chosen[-1])


def _priority_of(sequence: SequenceState) -> int:
    return sequence.request.source.priority
