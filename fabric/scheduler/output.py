"""What crosses between the scheduler and the workers in one iteration: changes, not state.

ScheduledSequence and SequenceUpdate are made for every sequence in every iteration. They are not
frozen, because that takes three times as long to make; nobody changes them all the same.
"""

from dataclasses import dataclass

from fabric.core.errors import RequestError
from fabric.core.request import FinishReason, PositionLogprobs, StopMatch, Timing, Usage
from fabric.core.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class NewSequence:
    """A sequence that the workers don't know yet (or again, after preemption by recompute).

    ``token_ids`` are prompt and output tokens so far; the first ``num_prompt_tokens`` are the
    prompt. ``block_ids`` is its whole block table, including the blocks that this iteration
    needs: its ScheduledSequence brings no further change to the table.
    """

    key: int
    index: int
    token_ids: tuple[int, ...]
    num_prompt_tokens: int
    sampling: SamplingParams
    block_ids: tuple[int, ...]


@dataclass(slots=True)
class ScheduledSequence:
    """One sequence's share of this iteration.

    The workers compute the KV of tokens ``num_computed_tokens`` up to
    ``num_computed_tokens + num_new_tokens``, after appending ``new_token_ids`` (sampled since they
    last heard of it, if they know it) to its tokens and ``new_block_ids`` to its block table
    and, where ``replaced_block`` is set, putting its second id at table position its first
    (copy-on-write). If more are to be computed than it has tokens then, the last one is the one
    that they sampled for it before, of which the scheduler hasn't heard; it won't tell them later.
    ``num_samples`` tokens are sampled from the last position: 0 within a prompt, 1 as a rule, n
    where n sequences fork after the prompt.
    """

    key: int
    num_computed_tokens: int
    num_new_tokens: int
    num_samples: int
    new_block_ids: tuple[int, ...] = ()
    new_token_ids: tuple[int, ...] = ()
    replaced_block: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class SchedulerOutput:
    """One iteration of one model: what to forget, copy and learn, then what to compute.

    Workers handle the fields in this order: ``released`` (forget these keys), ``copies``
    ((source block, target block) pairs, where no block is in two roles), ``new_sequences``,
    ``scheduled``. With nothing scheduled, all fields are empty and there is nothing to do.
    ``model`` is the model's place in its group; the workers know sequences by model and key.
    """

    step: int
    scheduled: tuple[ScheduledSequence, ...]
    new_sequences: tuple[NewSequence, ...] = ()
    copies: tuple[tuple[int, int], ...] = ()
    released: tuple[int, ...] = ()
    model: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens computed in this iteration."""
        return sum(item.num_new_tokens for item in self.scheduled)


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """The tokens sampled for one scheduled sequence: one for each of its ``num_samples``."""

    key: int
    token_ids: tuple[int, ...]
    logprobs: tuple[PositionLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class StepResult:
    """What the workers sampled in one iteration; sequences with no samples are left out.

    After an ``error`` the iteration has computed nothing, and its sequences must begin anew; what
    those of the model that were submitted meanwhile give is void.
    """

    step: int
    sampled: tuple[SampledTokens, ...]
    error: str = ""


@dataclass(slots=True)
class SequenceUpdate:
    """What one iteration gave one sequence.

    ``first_token`` is the number of the first of ``token_ids`` within the output, from 0. The
    token that ended the sequence is among ``token_ids``.
    """

    request_id: str
    key: int
    index: int
    first_token: int
    token_ids: tuple[int, ...]
    logprobs: tuple[PositionLogprobs, ...] = ()
    finish_reason: FinishReason | None = None
    stop_match: StopMatch | None = None


@dataclass(frozen=True, slots=True)
class RequestEnd:
    """A request has ended and holds no block any more.

    ``error`` is None if every sequence ended by itself; else ``unfinished`` names the sequences
    (by index) that the error cut off, and what their finish reason is.
    """

    request_id: str
    usage: Usage
    timing: Timing
    error: RequestError | None = None
    unfinished: tuple[tuple[int, FinishReason], ...] = ()
