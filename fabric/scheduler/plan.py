"""One iteration while it is being put together."""

from fabric.kv.manager import Allocation
from fabric.scheduler.lane import Lane
from fabric.scheduler.output import NewSequence, ScheduledSequence, SchedulerOutput
from fabric.scheduler.request import SequenceState


class StepPlan:
    """The sequences of one model chosen so far, and the tokens left of the iteration's budget.

    With ``runs_ahead``, the tokens that it samples may be scheduled before they are known.
    """

    __slots__ = ("_chosen", "_runs_ahead", "budget", "lane")

    def __init__(self, lane: Lane, budget: int, runs_ahead: bool = False) -> None:
        self.lane = lane
        self.budget = budget
        self._runs_ahead = runs_ahead
        self._chosen: dict[int, tuple[SequenceState, int, Allocation]] = {}

    def __len__(self) -> int:
        return len(self._chosen)

    def __contains__(self, key: int) -> bool:
        return key in self._chosen

    def add(self, sequence: SequenceState, num_new_tokens: int, allocation: Allocation) -> None:
        """Compute the next ``num_new_tokens`` tokens of a sequence."""
        self.budget -= num_new_tokens
        self._chosen[sequence.key] = (sequence, num_new_tokens, allocation)

    def drop(self, key: int) -> None:
        """Take a sequence out again, if it is in, and return its tokens to the budget."""
        chosen = self._chosen.pop(key, None)
        if chosen is not None:
            self.budget += chosen[1]

    def finish(self, step: int) -> SchedulerOutput:
        """Write the plan down for the workers.

        An empty iteration never reaches them, so what they are to forget waits.
        """
        kv, released = self.lane.kv, self.lane.released
        scheduled: list[ScheduledSequence] = []
        introduced: list[NewSequence] = []
        for sequence, num_new_tokens, allocation in self._chosen.values():
            key, tokens, start = sequence.key, sequence.tokens, sequence.num_scheduled_tokens
            num_tokens, end = len(tokens), start + num_new_tokens
            sequence.num_scheduled_tokens = end
            num_samples = 0
            if end == sequence.num_ready_tokens:
                num_samples = self._sample(sequence)
            if num_known := sequence.num_known_tokens:
                new_token_ids = tuple(tokens[num_known:]) if num_known < num_tokens else ()
                item = ScheduledSequence(
                    key,
                    start,
                    num_new_tokens,
                    num_samples,
                    allocation.new_block_ids,
                    new_token_ids,
                    allocation.replaced_block,
                )
            else:
                item = ScheduledSequence(key, start, num_new_tokens, num_samples)
                sequence.first_step = step
                introduced.append(sequence.introduce(kv.block_ids(key)))
            # Workers have filled in themselves what nobody could tell them.
            sequence.num_known_tokens = end if end > num_tokens else num_tokens
            scheduled.append(item)
        forgotten = tuple(released) if scheduled else ()
        if scheduled:
            released.clear()
        return SchedulerOutput(
            step,
            tuple(scheduled),
            tuple(introduced),
            kv.take_copies(),
            forgotten,
            self.lane.number,
        )

    def _sample(self, sequence: SequenceState) -> int:
        """Note that a sequence gets a token; how many are drawn.

        What each of several siblings gets is to be known before they go on.
        """
        sequence.num_pending += 1
        num_ready = sequence.num_ready_tokens + 1
        if self._runs_ahead and sequence.num_samples == 1 and num_ready < sequence.max_num_tokens:
            sequence.num_ready_tokens = num_ready
        return sequence.num_samples
