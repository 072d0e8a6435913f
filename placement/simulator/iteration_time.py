"""How long an iteration takes, by a profile."""

from fabric.core.profile import Profile
from fabric.scheduler.output import SchedulerOutput


def iteration_s(profile: Profile, output: SchedulerOutput) -> float:
    """Seconds of an iteration: its decodes together, then each prompt chunk's share.

    A chunk adds what its prompt takes up to its end, less what it takes up to its beginning.

    Source: Sarathi-Serve (Agrawal et al., OSDI 2024), section 4, iterations of mixed batches.
    """
    num_decodes, context, chunks_s = 0, 0, 0.0
    for item in output.scheduled:
        num_computed, num_new = item.num_computed_tokens, item.num_new_tokens
        if num_new == 1:
            num_decodes += 1
            context += num_computed + 1
        else:
            before_s = profile.prefill_s(num_computed or 1)
            chunks_s += profile.prefill_s(num_computed + num_new) - before_s
    if not num_decodes:
        return profile.min_iteration_s + chunks_s
    return profile.decode_s(num_decodes, context // num_decodes) + chunks_s
