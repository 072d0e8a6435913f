"""What a sampled token does to its sequence, and when it ends it."""

from fabric.core.request import FinishReason, PositionLogprobs, StopMatch
from fabric.scheduler.lane import Lane
from fabric.scheduler.output import SequenceUpdate
from fabric.scheduler.request import SequenceState

Ending = tuple[FinishReason | None, StopMatch | None]

_GOES_ON: Ending = (None, None)
_TOO_LONG: Ending = (FinishReason.LENGTH, None)


def ending_of(sequence: SequenceState, eos_token_ids: frozenset[int], max_model_len: int) -> Ending:
    """Whether a sequence ends with its last token, and by which stop token.

    EOS and stop tokens count only after ``min_tokens`` other output tokens; a stop is reported
    rather than a length that is reached at the same token.
    """
    sampling = sequence.request.source.sampling
    tokens = sequence.tokens
    token, num_output = tokens[-1], len(tokens) - sequence.num_prompt_tokens
    is_stop = (token in eos_token_ids and not sampling.ignore_eos) or (
        token in sampling.stop_token_ids
    )
    if is_stop and num_output > sampling.min_tokens:
        return FinishReason.STOP, StopMatch(token_id=token)
    if num_output >= sampling.max_tokens or len(tokens) >= max_model_len:
        return _TOO_LONG
    return _GOES_ON


def append_token(
    lane: Lane,
    sequence: SequenceState,
    token_ids: tuple[int, ...],
    logprobs: tuple[PositionLogprobs, ...],
) -> SequenceUpdate:
    """Append a token to a sequence; what to tell of it, and whether it ends there."""
    request, tokens, spec = sequence.request, sequence.tokens, lane.spec
    first_token = len(tokens) - sequence.num_prompt_tokens
    tokens.append(token_ids[0])
    if sequence.num_ready_tokens < len(tokens):
        sequence.num_ready_tokens = len(tokens)
    request.num_output_tokens += 1
    lane.num_sampled += 1
    reason, match = ending_of(sequence, spec.eos_token_ids, spec.max_model_len)
    return SequenceUpdate(
        request.source.request_id,
        sequence.key,
        sequence.index,
        first_token,
        token_ids,
        logprobs,
        reason,
        match,
    )
