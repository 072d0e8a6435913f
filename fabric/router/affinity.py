"""Which group's prefix cache may hold a prompt's beginning, guessed from where prompts went."""

from collections import OrderedDict

from fabric.core.request import GenerationRequest

# Coarser than a cache's blocks, and no further than what shared system prompts take: hashing is
# done for each request.
BLOCK_TOKENS = 32
MAX_BLOCKS = 32
MAX_HASHES = 8192


def prefix_hashes(request: GenerationRequest) -> tuple[int, ...]:
    """A hash of each of the prompt's first blocks, with all before it, its model and its salt."""
    ids = request.prompt_token_ids
    end = min(len(ids) // BLOCK_TOKENS, MAX_BLOCKS) * BLOCK_TOKENS
    last = hash((request.model, request.cache_salt))
    hashes = []
    for start in range(0, end, BLOCK_TOKENS):
        last = hash((last, ids[start : start + BLOCK_TOKENS]))
        hashes.append(last)
    return tuple(hashes)


class PrefixAffinity:
    """The blocks that were sent to each group lately; the longest unused are forgotten first."""

    def __init__(self, max_hashes: int = MAX_HASHES) -> None:
        self._max_hashes = max_hashes
        self._seen: dict[str, OrderedDict[int, None]] = {}

    def num_blocks(self, group: str, prefix: tuple[int, ...]) -> int:
        """How many of the first blocks went to the group, without a gap."""
        seen = self._seen.get(group)
        if not seen:
            return 0
        count = 0
        for block in prefix:
            if block not in seen:
                break
            count += 1
        return count

    def note(self, group: str, prefix: tuple[int, ...]) -> None:
        """Remember that a prompt was sent to the group."""
        if not prefix:
            return
        seen = self._seen.setdefault(group, OrderedDict())
        # The last block first: what is forgotten first is a chain's end, not its beginning.
        for block in reversed(prefix):
            seen[block] = None
            seen.move_to_end(block)
        while len(seen) > self._max_hashes:
            seen.popitem(last=False)

    def keep_only(self, groups: set[str]) -> None:
        """Drop all groups but these."""
        for group in self._seen.keys() - groups:
            del self._seen[group]
