"""Who goes first and who gives way, as values that the scheduler asks."""

from collections.abc import Sequence
from typing import Protocol

from fabric.scheduler.request import SequenceState

Rank = tuple[float, ...]


class Policy(Protocol):
    """Orders sequences by rank, the lowest first.

    A rank may change only when the scheduler asks: when the sequence has run, or when it is
    named by ``promote``. All ranks of one policy have the same length, and no two sequences the
    same rank. Times are seconds on the scheduler's clock.
    """

    @property
    def name(self) -> str:
        """What the configuration calls it."""
        ...

    @property
    def is_preemptive(self) -> bool:
        """Whether a sequence may take slots, tokens and blocks from those that rank after it.

        If not, a sequence that has begun runs in every iteration until blocks run out.
        """
        ...

    def enroll(self, sequence: SequenceState, now: float) -> Rank:
        """The rank of a sequence that is new to the policy; it waits, or is a fork that runs."""
        ...

    def note_run(self, sequence: SequenceState, elapsed_s: float, now: float) -> Rank:
        """The rank of a sequence that was part of an iteration which took ``elapsed_s``.

        It is called when the iteration's tokens are counted and appended.
        """
        ...

    def promote(self, now: float) -> Sequence[tuple[SequenceState, Rank]]:
        """Those whose rank changes although they did not run, because they have waited so long."""
        ...

    def leave(self, sequence: SequenceState, now: float) -> None:
        """Forget a sequence that has ended."""
        ...

    def next_run_s(self, sequence: SequenceState, now: float) -> float:
        """Seconds until the sequence is scheduled again, as estimated (ENST).

        Source: FastServe (Wu et al.), section 4.2.
        """
        ...

    def remaining_s(self, sequence: SequenceState) -> float | None:
        """Seconds of service that the sequence still needs, as estimated; None: no idea."""
        ...

    def level(self, sequence: SequenceState) -> int | None:
        """The number of the queue that the sequence is in, from 0, if the policy has queues."""
        ...

    def num_reserved_tokens(self, sequence: SequenceState) -> int:
        """For how many tokens a sequence takes blocks when it is admitted; at least its own."""
        ...

    def may_admit(self, num_running: int) -> bool:
        """Whether waiting sequences may join ``num_running`` that run already."""
        ...


class StaticPolicy:
    """What policies share that give a sequence one rank for all of its life."""

    name = "static"
    is_preemptive = False

    def enroll(self, sequence: SequenceState, now: float) -> Rank:
        """Priority, then order of arrival."""
        request = sequence.request
        return (request.source.priority, request.number, sequence.index)

    def note_run(self, sequence: SequenceState, elapsed_s: float, now: float) -> Rank:
        """Its rank is as before."""
        return sequence.rank

    def promote(self, now: float) -> Sequence[tuple[SequenceState, Rank]]:
        """Nobody."""
        return ()

    def leave(self, sequence: SequenceState, now: float) -> None:
        """Nothing is kept."""

    def next_run_s(self, sequence: SequenceState, now: float) -> float:
        """Unknown: the order of ranks stands for it."""
        return sequence.rank[1]

    def remaining_s(self, sequence: SequenceState) -> float | None:
        """Unknown."""
        return None

    def level(self, sequence: SequenceState) -> int | None:
        """There are no queues."""
        return None

    def num_reserved_tokens(self, sequence: SequenceState) -> int:
        """Only for the tokens that it has."""
        return len(sequence.tokens)

    def may_admit(self, num_running: int) -> bool:
        """Always."""
        return True


class FCFS(StaticPolicy):
    """First come, first served within a priority; the newest gives way.

    The oldest sequence is therefore never preempted while another one runs, so it ends.

    Source: Orca (Yu et al., OSDI 2022), section 4.1; vLLM (SOSP 2023), section 4.5.
    """

    name = "fcfs"
