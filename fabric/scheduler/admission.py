"""What a request may ask for, given the memory and the limits that there are."""

from fabric.core.errors import InvalidRequest
from fabric.core.request import GenerationRequest
from fabric.kv.manager import KVCacheManager


def check_fits(
    request: GenerationRequest, kv: KVCacheManager, max_model_len: int, max_num_seqs: int
) -> None:
    """Refuse a request that could not be served even if it were alone.

    Raises:
        InvalidRequest: Its prompt, n, or the KV of its longest possible sequence doesn't fit.
    """
    num_prompt, sampling = len(request.prompt_token_ids), request.sampling
    if not 0 < num_prompt < max_model_len:
        raise InvalidRequest.of(
            "prompt", f"has {num_prompt} tokens; allowed: 1 to {max_model_len - 1}"
        )
    if not 1 <= sampling.n <= max_num_seqs:
        raise InvalidRequest.of("sampling.n", f"is {sampling.n}; allowed: 1 to {max_num_seqs}")
    # The last sampled token's KV is never needed.
    num_stored = min(num_prompt + sampling.max_tokens, max_model_len) - 1
    num_blocks = kv.num_blocks_for(num_stored)
    if num_blocks > kv.num_blocks:
        raise InvalidRequest.of(
            "prompt",
            f"with {num_prompt} tokens and max_tokens {sampling.max_tokens} needs "
            f"{num_blocks} KV blocks; there are {kv.num_blocks}",
        )
