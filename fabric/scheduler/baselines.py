"""Policies that give a sequence one rank for all of its life, and how older engines batch."""

from fabric.scheduler.policy import StaticPolicy
from fabric.scheduler.request import SequenceState


class PriorityPolicy(StaticPolicy):
    """As FCFS, but whoever ranks before a running sequence takes its slot, tokens and blocks.

    A request therefore never waits for one of a lower priority. Within a priority the oldest
    runs, and goes on, first.
    """

    name = "priority"
    is_preemptive = True


class Orca(StaticPolicy):
    """FCFS that reserves all the blocks which a sequence may come to need when it is admitted.

    Nothing is ever preempted, at the cost of blocks that most sequences never fill.

    Source: Orca (Yu et al., OSDI 2022), section 4.1 and algorithm 1.
    """

    name = "orca"

    def num_reserved_tokens(self, sequence: SequenceState) -> int:
        """Its prompt and all that it may sample but the last, whose KV is never needed."""
        return sequence.num_prompt_tokens + sequence.request.source.sampling.max_tokens - 1


class RequestLevel(StaticPolicy):
    """Static batching: a batch is filled once, and the next one starts when all of it has ended.

    Source: Orca (Yu et al., OSDI 2022), section 2, on engines that schedule whole requests.
    """

    name = "static"

    def may_admit(self, num_running: int) -> bool:
        """Only into an empty batch."""
        return num_running == 0
