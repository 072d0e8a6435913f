"""One iteration while it is being put together."""

from fabric.kv.manager import Allocation
from fabric.scheduler.lane import Lane
from fabric.scheduler.output import NewSequence, ScheduledSequence, SchedulerOutput
from fabric.scheduler.request import SequenceState


class StepPlan:
    """The sequences of one model chosen so far, and the tokens left of the iteration's budget."""

    __slots__ = ("_chosen", "budget", "lane")

    def __init__(self, lane: Lane, budget: int) -> None:
        self.lane = lane
        self.budget = budget
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
            num_samples = sequence.num_samples if end == num_tokens else 0
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
            sequence.num_known_tokens = num_tokens
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
