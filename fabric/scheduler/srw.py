"""Shortest remaining work first, by guesses that get better."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from math import frexp, inf

from fabric.core.profile import Profiles
from fabric.scheduler.lengths import LengthEstimator
from fabric.scheduler.policy import Rank, StaticPolicy
from fabric.scheduler.request import SequenceState

_NUM_SIZES = 64
_SIZE_OF_A_SECOND = 32
_LEAST_GROWTH = 1.25


@dataclass(frozen=True, slots=True)
class Restraint:
    """What keeps short work from always going first.

    Waiting for a second counts like ``ageing_per_s`` seconds less work, so nobody waits for ever;
    for ``min_run_s`` after it began to run a sequence ranks before all that haven't, so that few
    tokens are the least that a swap buys.
    """

    ageing_per_s: float
    min_run_s: float


class _Work:
    """A sequence's remaining seconds, and when it ran last and how long it is kept running.

    The seconds hold until the sequence has ``num_tokens_next`` tokens.
    """

    __slots__ = (
        "kept_until_s", "last_run_s", "num_tokens_next", "remaining_s", "sequence", "size",
    )  # fmt: skip

    def __init__(self, sequence: SequenceState) -> None:
        self.sequence = sequence
        self.remaining_s = 0.0
        self.size = 0
        self.num_tokens_next = 0
        self.last_run_s = -inf
        self.kept_until_s = -inf


class SRW(StaticPolicy):
    """Within a priority, who needs the least service still runs first, also in another's place.

    Remaining work is the rest of the prompt, which gives a token, and those that come after it at
    the pace of a full batch. How many come is the client's guess if there is one, else the mean
    residual life of what ended before; ``max_tokens`` only bounds it. A client's guess that turns
    out too low grows. More work than before costs a sequence its place only if it is a quarter
    more.

    ``next_run_s`` adds up the work of all that need less, whatever their age.

    Source: Schrage, Operations Research 1968 (SRPT); with guesses, Sevcik, JACM 1974.
    """

    name = "srw"
    is_preemptive = True

    def __init__(
        self,
        restraint: Restraint,
        lengths: LengthEstimator,
        profiles: Profiles,
        max_num_seqs: int,
    ) -> None:
        self._restraint = restraint
        self._lengths = lengths
        self._profiles = profiles
        self._max_num_seqs = max_num_seqs
        self._work: dict[int, _Work] = {}
        # By the time until which each is kept running.
        self._kept: OrderedDict[int, _Work] = OrderedDict()
        self._num_of_size = [0] * _NUM_SIZES

    def enroll(self, sequence: SequenceState, now: float) -> Rank:
        """By its guessed work, less what its age is worth."""
        work = _Work(sequence)
        self._work[sequence.key] = work
        self._num_of_size[0] += 1
        self._estimate(work)
        return self._rank(work)

    def note_run(self, sequence: SequenceState, elapsed_s: float, now: float) -> Rank:
        """It needs less, or, the longer it goes on the more, as the lengths that were seen say."""
        work = self._work[sequence.key]
        # The gap doesn't count the iteration itself, or long ones would always begin anew.
        gap_s = now - elapsed_s - work.last_run_s
        work.last_run_s = now
        if gap_s > self._restraint.min_run_s:
            work.kept_until_s = now + self._restraint.min_run_s
            self._kept[sequence.key] = work
        elif len(sequence.tokens) < work.num_tokens_next:
            return sequence.rank
        self._estimate(work)
        return self._rank(work)

    def promote(self, now: float) -> Sequence[tuple[SequenceState, Rank]]:
        """Those that aren't kept running any more take the place that their work gives them."""
        released: list[tuple[SequenceState, Rank]] = []
        while self._kept:
            work = next(iter(self._kept.values()))
            if work.kept_until_s > now:
                break
            del self._kept[work.sequence.key]
            released.append((work.sequence, self._rank(work)))
        return released

    def leave(self, sequence: SequenceState, now: float) -> None:
        """Forget the sequence."""
        work = self._work.pop(sequence.key)
        self._kept.pop(sequence.key, None)
        self._num_of_size[work.size] -= 1

    def next_run_s(self, sequence: SequenceState, now: float) -> float:
        """The time in which a full batch does all smaller work; sizes are powers of two."""
        size = self._work[sequence.key].size
        service_s = 0.0
        for smaller in range(size):
            if self._num_of_size[smaller]:
                service_s += (
                    self._num_of_size[smaller] * 0.75 * 2.0 ** (smaller - _SIZE_OF_A_SECOND)
                )
        return service_s / self._max_num_seqs

    def remaining_s(self, sequence: SequenceState) -> float:
        """Its guessed work."""
        return self._work[sequence.key].remaining_s

    def _rank(self, work: _Work) -> Rank:
        request = work.sequence.request
        # Work less age would change all the time, but for all alike: what is left when the common
        # part, ageing times now, is dropped never changes while a sequence waits.
        key = work.remaining_s + self._restraint.ageing_per_s * request.arrival_s
        is_free = work.sequence.key not in self._kept
        return (request.source.priority, is_free, key, request.number, work.sequence.index)

    def _estimate(self, work: _Work) -> None:
        sequence = work.sequence
        profile = self._profiles[sequence.request.source.model]
        num_tokens, num_computed = len(sequence.tokens), sequence.num_computed_tokens
        num_output_tokens = num_tokens - sequence.num_prompt_tokens
        num_to_come = self._num_tokens_to_come(sequence, num_output_tokens)
        # A few more tokens change little, and guessing anew at each would cost a lot.
        num_same = min(4 + num_output_tokens // 8, int(num_to_come) // 4)
        work.num_tokens_next = num_tokens + num_same
        remaining_s = 0.0
        if num_tokens - num_computed > 1:
            remaining_s = profile.rest_of_prefill_s(num_tokens, num_computed)
            num_to_come -= 1.0
        remaining_s += num_to_come * profile.decode_s(self._max_num_seqs, num_tokens)
        # Guesses that creep up would let sequences like each other take turns at every token.
        if work.remaining_s <= remaining_s < _LEAST_GROWTH * work.remaining_s:
            return
        size = min(max(frexp(remaining_s)[1] + _SIZE_OF_A_SECOND, 0), _NUM_SIZES - 1)
        self._num_of_size[work.size] -= 1
        self._num_of_size[size] += 1
        work.remaining_s, work.size = remaining_s, size

    def _num_tokens_to_come(self, sequence: SequenceState, num_output_tokens: int) -> float:
        source = sequence.request.source
        limit = source.sampling.max_tokens - num_output_tokens
        if source.expected_tokens is None:
            guess = self._lengths.remaining(source.model, source.tenant, num_output_tokens)
        else:
            guess = max(source.expected_tokens - num_output_tokens, num_output_tokens / 4)
        return max(1.0, min(guess, limit))
