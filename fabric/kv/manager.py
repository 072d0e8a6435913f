"""Block tables of all sequences over one pool: sharing, copy-on-write, prefix cache."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from fabric.kv.block_pool import BlockPool
from fabric.kv.prefix import PrefixChain


@dataclass(frozen=True, slots=True)
class Allocation:
    """What changed in a block table: blocks at its end, and (position, new block) if copied."""

    new_block_ids: tuple[int, ...] = ()
    replaced_block: tuple[int, int] | None = None


_UNCHANGED = Allocation()


class _Table:
    __slots__ = ("blocks", "chain", "num_registered")

    def __init__(self, blocks: list[int], chain: PrefixChain, num_registered: int) -> None:
        self.blocks = blocks
        self.chain = chain
        self.num_registered = num_registered


class KVCacheManager:
    """Gives sequences, known by integer keys, the blocks that their tokens' KV needs.

    A block may be in several tables: forks share all of theirs, and sequences with the same
    prefix share its full blocks. Nobody writes to a shared block: ``allocate`` replaces it first
    and notes the copy to make (``take_copies``).

    Source: vLLM (Kwon et al., SOSP 2023), sections 4.2 to 4.4.
    """

    def __init__(self, num_blocks: int, block_size: int, prefix_cache: bool = True) -> None:
        self.block_size = block_size
        self.prefix_cache = prefix_cache
        self._pool = BlockPool(num_blocks)
        self._tables: dict[int, _Table] = {}
        self._copies: dict[int, int] = {}
        self._held: list[int] = []

    @property
    def num_blocks(self) -> int:
        """Blocks of the whole pool."""
        return self._pool.num_blocks

    @property
    def num_free_blocks(self) -> int:
        """Blocks that no sequence holds; some may be cached."""
        return self._pool.num_free

    @property
    def num_cached_blocks(self) -> int:
        """Blocks that a new sequence with the same prefix could share."""
        return self._pool.num_cached

    def num_blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold this many tokens."""
        return -(-num_tokens // self.block_size)

    def block_ids(self, key: int) -> tuple[int, ...]:
        """The sequence's block table."""
        return tuple(self._tables[key].blocks)

    def find_cached(self, chain: PrefixChain, num_tokens: int) -> list[int]:
        """The longest cached prefix of a sequence, as blocks.

        At least one of the ``num_tokens`` tokens is left to compute, since only a computed
        position can be sampled from.
        """
        blocks: list[int] = []
        if not self.prefix_cache:
            return blocks
        for index in range((num_tokens - 1) // self.block_size):
            block = self._pool.find(chain.hash_of(index))
            if block is None:
                break
            blocks.append(block)
        return blocks

    def can_admit(self, num_tokens: int, cached: Sequence[int], num_spare_blocks: int) -> bool:
        """Whether a new sequence fits and leaves ``num_spare_blocks`` free for those that run."""
        num_revived = sum(1 for block in cached if self._pool.refcount(block) == 0)
        num_new = self.num_blocks_for(num_tokens) - len(cached)
        return num_new + num_revived + num_spare_blocks <= self._pool.num_free

    def open(self, key: int, chain: PrefixChain, cached: list[int]) -> None:
        """Start the table of a new sequence with the blocks that ``find_cached`` gave."""
        assert key not in self._tables
        for block in cached:
            self._pool.share(block)
        self._tables[key] = _Table(cached, chain, len(cached))

    def allocate(self, key: int, num_tokens: int, num_computed_tokens: int) -> Allocation | None:
        """Make room to write the KV of tokens ``num_computed_tokens .. num_tokens - 1``.

        Returns:
            The changes to the sequence's table, or None (and nothing changed) if too few blocks
            are free.
        """
        pool, blocks = self._pool, self._tables[key].blocks
        num_new = -(-num_tokens // self.block_size) - len(blocks)
        first = num_computed_tokens // self.block_size
        is_shared = first < len(blocks) and pool.refcount(blocks[first]) > 1
        if num_new <= 0 and not is_shared:
            return _UNCHANGED
        if num_new + is_shared > pool.num_free:
            return None
        replaced = (first, self._replace(blocks, first)) if is_shared else None
        new_blocks = tuple(pool.take() for _ in range(num_new))
        blocks.extend(new_blocks)
        return Allocation(new_blocks, replaced)

    def register(self, key: int, num_computed_tokens: int) -> None:
        """Put the sequence's full blocks into the prefix cache, once their KV is stored."""
        table = self._tables[key]
        num_full = num_computed_tokens // self.block_size
        if num_full <= table.num_registered or not self.prefix_cache:
            return
        for index in range(table.num_registered, num_full):
            self._pool.register(table.blocks[index], table.chain.hash_of(index))
        table.num_registered = num_full

    def fork(self, parent_key: int, child_key: int, chain: PrefixChain) -> None:
        """Give a new sequence the same blocks as ``parent_key``, to share until one writes."""
        parent = self._tables[parent_key]
        self.open(child_key, chain, parent.blocks.copy())
        self._tables[child_key].num_registered = parent.num_registered

    def free(self, key: int) -> None:
        """Give the sequence's blocks back, the last first so that prefixes stay cached longest."""
        for block in reversed(self._tables.pop(key).blocks):
            self._release(block)

    def take_copies(self) -> tuple[tuple[int, int], ...]:
        """The (source, target) block copies due before the next computation, all independent."""
        copies = tuple((source, target) for target, source in self._copies.items())
        self._copies.clear()
        for block in self._held:
            self._pool.release(block)
        self._held.clear()
        return copies

    def check_invariants(self) -> None:
        """Assert that the reference counts are those of the tables, and that none is lost."""
        self._pool.check_invariants()
        users = Counter(self._held)
        for table in self._tables.values():
            assert len(set(table.blocks)) == len(table.blocks)
            users.update(table.blocks)
        for block in range(self.num_blocks):
            assert self._pool.refcount(block) == users[block]

    def _replace(self, blocks: list[int], position: int) -> int:
        source, target = blocks[position], self._pool.take()
        blocks[position] = target
        self._copies[target] = source
        self._release(source)
        return target

    def _release(self, block: int) -> None:
        if self._copies and self._pool.refcount(block) == 1:
            self._copies.pop(block, None)
            if block in self._copies.values():
                # A copy of this step still reads it: it may not become another copy's target.
                self._held.append(block)
                return
        self._pool.release(block)
