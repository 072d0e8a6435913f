"""A fixed set of KV blocks: who uses them, which are free, and which hold a known prefix."""

from collections import OrderedDict


class BlockPool:
    """Reference-counted block ids ``0 .. num_blocks - 1``; every operation takes constant time.

    A block whose count falls to 0 is free. If it holds a cached prefix it stays findable by its
    hash until it is evicted: free blocks without a hash are taken first, then the cached ones, the
    least recently used first. The same calls always give the same ids.

    Source: vLLM (Kwon et al., SOSP 2023), section 4.3.
    """

    __slots__ = ("_by_hash", "_evictable", "_hashes", "_plain", "_refcounts", "emptied")

    def __init__(self, num_blocks: int, notes_emptied: bool = False) -> None:
        """Make a pool; with ``notes_emptied``, ``emptied`` lists blocks whose content is void."""
        assert num_blocks > 0
        self.emptied: list[int] | None = [] if notes_emptied else None
        self._refcounts = [0] * num_blocks
        self._hashes: list[bytes | None] = [None] * num_blocks
        self._by_hash: dict[bytes, int] = {}
        self._plain = list(range(num_blocks - 1, -1, -1))
        self._evictable: OrderedDict[int, None] = OrderedDict()

    @property
    def num_blocks(self) -> int:
        """All blocks."""
        return len(self._refcounts)

    @property
    def num_free(self) -> int:
        """Blocks that ``take`` can still give, the cached ones among them."""
        return len(self._plain) + len(self._evictable)

    @property
    def num_cached(self) -> int:
        """Blocks that can be found by hash, whether in use or free."""
        return len(self._by_hash)

    def refcount(self, block: int) -> int:
        """How many block tables hold the block."""
        return self._refcounts[block]

    def take(self) -> int:
        """Give a free block, evicting a cached one if no other is left; one must be free."""
        if self._plain:
            block = self._plain.pop()
        else:
            block, _ = self._evictable.popitem(last=False)
            self.forget(block)
            if self.emptied is not None:
                self.emptied.append(block)
        assert self._refcounts[block] == 0
        self._refcounts[block] = 1
        return block

    def share(self, block: int) -> None:
        """Add a user to a block that is in use, or is free but cached."""
        if self._refcounts[block] == 0:
            del self._evictable[block]
        self._refcounts[block] += 1

    def release(self, block: int) -> None:
        """Take a user away from a block; it becomes free with its last user."""
        count = self._refcounts[block] - 1
        assert count >= 0, f"block {block} is released more often than taken"
        self._refcounts[block] = count
        if count:
            return
        if self._hashes[block] is None:
            self._plain.append(block)
            if self.emptied is not None:
                self.emptied.append(block)
        else:
            self._evictable[block] = None

    def find(self, prefix_hash: bytes) -> int | None:
        """The block that holds this prefix's last tokens, if it is cached."""
        return self._by_hash.get(prefix_hash)

    def register(self, block: int, prefix_hash: bytes) -> None:
        """Make a full block in use findable, unless another block holds the same prefix."""
        assert self._refcounts[block] > 0
        if prefix_hash in self._by_hash:
            return
        assert self._hashes[block] is None
        self._hashes[block] = prefix_hash
        self._by_hash[prefix_hash] = block

    def forget(self, block: int) -> None:
        """Make a block unfindable, whose content is not what its hash says, or soon won't be."""
        prefix_hash = self._hashes[block]
        if prefix_hash is None:
            return
        del self._by_hash[prefix_hash]
        self._hashes[block] = None
        if block in self._evictable:
            del self._evictable[block]
            self._plain.append(block)

    def check_invariants(self) -> None:
        """Assert that every block is free exactly when unused, and in the right list."""
        plain, evictable = set(self._plain), set(self._evictable)
        assert len(plain) == len(self._plain)
        assert not plain & evictable
        for block, count in enumerate(self._refcounts):
            is_cached = self._hashes[block] is not None
            assert (block in plain) == (count == 0 and not is_cached)
            assert (block in evictable) == (count == 0 and is_cached)
        hashes = {h: b for b, h in enumerate(self._hashes) if h is not None}
        assert hashes == self._by_hash
