"""Who goes first and who gives way, as values that the scheduler asks."""

from collections.abc import Sequence
from typing import Protocol

from fabric.scheduler.request import SequenceState

Rank = tuple[float, ...]


class Policy(Protocol):
    """Orders sequences; has no state about them of its own."""

    def rank(self, sequence: SequenceState) -> Rank:
        """The place of a sequence that begins to wait; the lowest rank goes first."""
        ...

    def victim(self, running: Sequence[SequenceState]) -> SequenceState:
        """Which of the running sequences (lowest rank first, at least one) gives up its blocks."""
        ...


class FCFS:
    """First come, first served within a priority; the newest gives way.

    The oldest sequence is therefore never preempted while another one runs, so it ends.

    Source: Orca (Yu et al., OSDI 2022), section 4.1; vLLM (SOSP 2023), section 4.5.
    """

    def rank(self, sequence: SequenceState) -> Rank:
        """Priority, then order of arrival."""
        request = sequence.request
        return (request.source.priority, request.number, sequence.index)

    def victim(self, running: Sequence[SequenceState]) -> SequenceState:
        """The newest of the lowest priority."""
        return running[-1]
