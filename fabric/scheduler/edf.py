"""Earliest deadline first, by what requests ask of their latency."""

from math import inf

from fabric.scheduler.policy import Rank, StaticPolicy
from fabric.scheduler.request import SequenceState


class EDF(StaticPolicy):
    """Within a priority, whose next deadline comes first runs first, also in another's place.

    A sequence's next deadline is that of its next token, or of the whole request (objective or
    timeout) if that is earlier. Requests without any come last, by order of arrival. A deadline
    that has passed still counts, so a late request is served before one that can wait.

    Source: Liu and Layland, JACM 1973, section 7 (deadline driven scheduling).
    """

    name = "edf"
    is_preemptive = True

    def enroll(self, sequence: SequenceState, now: float) -> Rank:
        """Priority, then the next deadline, then order of arrival."""
        request = sequence.request
        deadline_s = _next_deadline_s(sequence)
        return (request.source.priority, deadline_s, request.number, sequence.index)

    def note_run(self, sequence: SequenceState, elapsed_s: float, now: float) -> Rank:
        """A new token has a new deadline."""
        return self.enroll(sequence, now)

    def next_run_s(self, sequence: SequenceState, now: float) -> float:
        """It runs by its deadline at the latest, if deadlines can be kept; inf if it has none."""
        return max(0.0, _next_deadline_s(sequence) - now)


def _next_deadline_s(sequence: SequenceState) -> float:
    request = sequence.request
    objectives = request.source.objectives
    earliest_s = inf if request.deadline_s is None else request.deadline_s
    if objectives.e2e_s is not None:
        earliest_s = min(earliest_s, request.arrival_s + objectives.e2e_s)
    return min(earliest_s, _token_deadline_s(sequence))


def _token_deadline_s(sequence: SequenceState) -> float:
    request = sequence.request
    objectives = request.source.objectives
    num_output_tokens = len(sequence.tokens) - sequence.num_prompt_tokens
    if num_output_tokens == 0:
        return inf if objectives.ttft_s is None else request.arrival_s + objectives.ttft_s
    if objectives.tpot_s is None:
        return inf
    if objectives.ttft_s is not None:
        first_s = request.arrival_s + objectives.ttft_s
    else:
        # Nothing was asked of the first token, so the pace counts from when it came.
        assert request.first_token_s is not None
        first_s = request.first_token_s
    return first_s + num_output_tokens * objectives.tpot_s
