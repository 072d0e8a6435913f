"""How long an iteration takes, by a profile."""

from fabric.core.profile import Profile
from fabric.scheduler.output import SchedulerOutput


def iteration_s(profile: Profile, output: SchedulerOutput) -> float:
    """Seconds of an iteration: its decodes together, then what each prompt's chunk adds.

    Weights are read once for all tokens. So a chunk adds to the tokens that are there already what
    as many more would add to a prompt of that many, but never more than it takes alone. If KV was
    there before it, what that makes it take longer comes on top.

    Source: Sarathi-Serve (Agrawal et al., OSDI 2024), section 4, iterations of mixed batches.
    """
    num_decodes, context = 0, 0
    chunks: list[tuple[int, int]] = []
    for item in output.scheduled:
        if item.num_new_tokens == 1:
            num_decodes += 1
            context += item.num_computed_tokens + 1
        else:
            chunks.append((item.num_computed_tokens, item.num_new_tokens))
    decodes_s = profile.decode_s(num_decodes, context // num_decodes) if num_decodes else 0.0
    return decodes_s + _chunks_s(profile, chunks, num_decodes) if chunks else decodes_s


def _chunks_s(profile: Profile, chunks: list[tuple[int, int]], num_tokens: int) -> float:
    """What chunks (tokens with KV, tokens that get it) add to an iteration of so many tokens."""
    seconds, prefill_s = 0.0, profile.prefill_s
    before_s = prefill_s(num_tokens) if num_tokens else 0.0
    for num_computed, num_new in chunks:
        alone_s = prefill_s(num_new)
        num_tokens += num_new
        after_s = prefill_s(num_tokens)
        seconds += min(alone_s, after_s - before_s)
        before_s = after_s
        if num_computed:
            later_s = prefill_s(num_computed + num_new) - prefill_s(num_computed)
            seconds += max(0.0, later_s - alone_s)
    return seconds
