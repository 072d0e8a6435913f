"""Multi-level feedback queues: who has had little service goes first, whatever it still needs."""

from collections import OrderedDict
from collections.abc import Sequence

from fabric.core.profile import Profiles
from fabric.scheduler.policy import Rank, StaticPolicy
from fabric.scheduler.quanta import Quanta, Starvation
from fabric.scheduler.request import SequenceState

_RESIDENCE_WINDOW = 64


class _Place:
    """Where a sequence stands: its queue, how much of the quantum is used, since when it waits."""

    __slots__ = ("level", "sequence", "used_s", "waiting_since_s")

    def __init__(self, sequence: SequenceState, level: int, now: float) -> None:
        self.sequence = sequence
        self.level = level
        self.used_s = 0.0
        self.waiting_since_s = now


class MLFQ(StaticPolicy):
    """Skip-join MLFQ: a request joins the first queue whose quantum holds its prefill.

    Quanta are seconds as measured. A sequence that has used up its quantum sinks to a lower queue
    whose quantum holds its next iteration. Within a queue, who came to it first goes first; who
    waits for longer than alpha goes to the first queue, and there to where it would be had it
    waited since its arrival, so that nothing that arrived later can hold it up any more. Priority
    classes outrank queues.

    ``next_run_s`` reckons that all in better queues sink to the sequence's own before it runs,
    unless it is promoted sooner.

    Source: FastServe (Wu et al., NSDI 2026; arXiv 2305.05920), sections 4.1 and 4.2. There alpha
    is fixed, and the promoted go to the first queue's end.
    """

    name = "mlfq"
    is_preemptive = True

    def __init__(
        self, quanta: Quanta, starvation: Starvation, profiles: Profiles, max_num_seqs: int
    ) -> None:
        self._quanta = quanta
        self._starvation = starvation
        self._profiles = profiles
        self._max_num_seqs = max_num_seqs
        # In the order in which they began to wait, since the clock never goes back.
        self._places: OrderedDict[int, _Place] = OrderedDict()
        self._num_at: dict[tuple[int, int], int] = {}
        self._residence_s = 0.0
        self._num_residences = 0

    @property
    def alpha_s(self) -> float:
        """How long a sequence waits before it is promoted, at the present load."""
        return max(self._starvation.alpha_s, self._starvation.alpha_load * self._residence_s)

    def enroll(self, sequence: SequenceState, now: float) -> Rank:
        """It joins a queue and waits from now on."""
        place = _Place(sequence, self._join_level(sequence), now)
        self._places[sequence.key] = place
        self._count(place, 1)
        return self._rank(place, now)

    def note_run(self, sequence: SequenceState, elapsed_s: float, now: float) -> Rank:
        """It keeps its place until its quantum is used up, then it sinks."""
        place = self._places[sequence.key]
        self._places.move_to_end(sequence.key)
        place.waiting_since_s = now
        place.used_s += elapsed_s
        if place.used_s < self._quanta.quanta_s[place.level]:
            return sequence.rank
        level = self._sunk_level(sequence, place.level)
        self._move(place, min(level, self._quanta.last))
        return self._rank(place, now)

    def promote(self, now: float) -> Sequence[tuple[SequenceState, Rank]]:
        """Those that have waited for longer than alpha, each once in every alpha."""
        promoted: list[tuple[SequenceState, Rank]] = []
        due_s = now - self.alpha_s
        while self._places:
            place = next(iter(self._places.values()))
            if place.waiting_since_s > due_s:
                break
            if place.level > 0:
                self._move(place, 0)
                promoted.append(
                    (place.sequence, self._rank(place, place.sequence.request.arrival_s))
                )
            place.used_s = 0.0
            place.waiting_since_s = now
            self._places.move_to_end(place.sequence.key)
        return promoted

    def leave(self, sequence: SequenceState, now: float) -> None:
        """Forget the sequence, but learn how long it stayed."""
        self._count(self._places.pop(sequence.key), -1)
        residence_s = now - sequence.request.arrival_s
        self._num_residences = min(self._num_residences + 1, _RESIDENCE_WINDOW)
        self._residence_s += (residence_s - self._residence_s) / self._num_residences

    def next_run_s(self, sequence: SequenceState, now: float) -> float:
        """The time until promotion, or until all that rank higher have sunk to its queue."""
        place = self._places[sequence.key]
        promotion_s = max(0.0, place.waiting_since_s + self.alpha_s - now)
        priority, until_s, service_s = sequence.request.source.priority, self._quanta.until_s, 0.0
        for (other_priority, level), count in self._num_at.items():
            if other_priority <= priority:
                # Those of a better class must sink through its queue too.
                end = max(level, place.level) + (other_priority < priority)
                service_s += count * (until_s[end] - until_s[level])
        return min(promotion_s, service_s / self._max_num_seqs)

    def level(self, sequence: SequenceState) -> int:
        """The queue that it is in."""
        return self._places[sequence.key].level

    def _join_level(self, sequence: SequenceState) -> int:
        return self._quanta.level_for(self._next_iteration_s(sequence))

    def _sunk_level(self, sequence: SequenceState, level: int) -> int:
        return max(level + 1, self._quanta.level_for(self._next_iteration_s(sequence)))

    def _next_iteration_s(self, sequence: SequenceState) -> float:
        """The profiled time of the rest of its prompt, or of an iteration that decodes."""
        profile = self._profiles[sequence.request.source.model]
        num_tokens, num_computed = len(sequence.tokens), sequence.num_computed_tokens
        if num_tokens - num_computed > 1:
            return profile.rest_of_prefill_s(num_tokens, num_computed)
        batch = max(1, min(len(self._places), self._max_num_seqs))
        return profile.decode_s(batch, num_tokens)

    def _rank(self, place: _Place, since_s: float) -> Rank:
        request = place.sequence.request
        index = place.sequence.index
        return (request.source.priority, place.level, since_s, request.number, index)

    def _move(self, place: _Place, level: int) -> None:
        self._count(place, -1)
        place.level = level
        place.used_s = 0.0
        self._count(place, 1)

    def _count(self, place: _Place, change: int) -> None:
        queue = (place.sequence.request.source.priority, place.level)
        count = self._num_at.get(queue, 0) + change
        if count:
            self._num_at[queue] = count
        else:
            del self._num_at[queue]


class NaiveMLFQ(MLFQ):
    """MLFQ as for programs: all start in the first queue and sink by one queue at a time.

    It is a baseline: a prompt that takes longer than the first quantum delays everyone once, and
    sinks past queues in which it has nothing to gain.

    Source: FastServe (Wu et al., NSDI 2026; arXiv 2305.05920), section 4.1, figure 6.
    """

    name = "naive_mlfq"

    def _join_level(self, sequence: SequenceState) -> int:
        return 0

    def _sunk_level(self, sequence: SequenceState, level: int) -> int:
        return level + 1
