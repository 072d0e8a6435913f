"""When a sampled token ends its sequence."""

from fabric.core.request import FinishReason, StopMatch
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
