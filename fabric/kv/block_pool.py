"""One model's KV blocks: who uses them, which are free, and which hold a known prefix."""

from collections import OrderedDict
from heapq import heappop, heappush

from fabric.kv.slabs import SlabPool


class _Slab:
    """A slab that the pool has, or has had: ``plain`` are its blocks that hold nothing.

    ``opened`` says as which one it was borrowed; 0: the pool doesn't have it now.
    """

    __slots__ = ("num_used", "number", "opened", "plain")

    def __init__(self, number: int, blocks_per_slab: int) -> None:
        self.number = number
        self.opened = 0
        self.num_used = 0
        first = number * blocks_per_slab
        self.plain = list(range(first + blocks_per_slab - 1, first - 1, -1))


class BlockPool:
    """Reference-counted blocks in slabs that are borrowed as needed.

    Block ``i`` lies in slab ``i // blocks_per_slab``. Every operation takes constant time, but
    for slabs that are evicted.

    A block whose count falls to 0 is free. If it holds a cached prefix it stays findable by its
    hash until it is evicted. A slab in which nothing is used or cached goes back at once; one in
    which something is cached but nothing used is idle: other models, and weights, can take it.
    The same calls always give the same ids.

    Source: vLLM (Kwon et al., SOSP 2023), section 4.3.
    """

    __slots__ = (
        "_by_hash", "_evictable", "_hashes", "_idle", "_num_opened", "_records", "_refcounts",
        "_roomy", "_slabs", "account", "blocks_per_slab", "emptied", "num_used",
    )  # fmt: skip

    def __init__(self, slabs: SlabPool, blocks_per_slab: int, notes_emptied: bool = False) -> None:
        """Make a pool; with ``notes_emptied``, ``emptied`` lists blocks whose content is void."""
        assert blocks_per_slab > 0
        self.account = slabs.open(self)
        self.blocks_per_slab = blocks_per_slab
        self.emptied: list[int] | None = [] if notes_emptied else None
        self.num_used = 0
        self._slabs = slabs
        self._refcounts = [0] * (slabs.num_slabs * blocks_per_slab)
        self._hashes: list[bytes | None] = [None] * len(self._refcounts)
        self._by_hash: dict[bytes, int] = {}
        self._records: dict[int, _Slab] = {}
        self._num_opened = 0
        # A heap of slabs with plain blocks, by when they were opened. Some have been returned
        # since; the first one hasn't.
        self._roomy: list[tuple[int, _Slab]] = []
        self._evictable: OrderedDict[int, None] = OrderedDict()
        self._idle: OrderedDict[int, None] = OrderedDict()

    @classmethod
    def fixed(cls, num_blocks: int, notes_emptied: bool = False) -> "BlockPool":
        """A pool of the blocks ``0 .. num_blocks - 1``, which nobody else has a use for."""
        return cls(SlabPool(1), num_blocks, notes_emptied)

    @property
    def num_blocks(self) -> int:
        """Blocks that it could have at most."""
        return self.account.most * self.blocks_per_slab

    @property
    def num_free(self) -> int:
        """Blocks that ``take`` can still give, cached ones and those of other slabs among them."""
        return self.account.num_usable * self.blocks_per_slab - self.num_used

    @property
    def num_cached(self) -> int:
        """Blocks that can be found by hash, whether in use or free."""
        return len(self._by_hash)

    @property
    def num_kept(self) -> int:
        """Blocks that are in use or hold a cached prefix."""
        return self.num_used + len(self._evictable)

    def refcount(self, block: int) -> int:
        """How many block tables hold the block."""
        return self._refcounts[block]

    def users(self) -> dict[int, int]:
        """How many block tables hold each block that is in use; for checks."""
        return {block: count for block, count in enumerate(self._refcounts) if count}

    def take(self) -> int:
        """Give a free block; one must be free.

        It is one that holds nothing, of the slab that was borrowed first so that others can
        drain; else of one more slab, if one is free; else the cached one that was used least
        recently; else of a slab that is idle with another model.
        """
        if self._slabs.slack < self.account.num_spare:
            self.account.settle()
        if self._roomy or self._borrows_another():
            slab = self._roomy[0][1]
            block = slab.plain.pop()
            if not slab.plain:
                heappop(self._roomy)
                self._drop_closed()
        else:
            block = self._evict()
            slab = self._records[block // self.blocks_per_slab]
        assert self._refcounts[block] == 0
        self._refcounts[block] = 1
        if not slab.num_used:
            self._wake(slab)
        slab.num_used += 1
        self.num_used += 1
        return block

    def share(self, block: int) -> None:
        """Add a user to a block that is in use, or is free but cached."""
        if self._refcounts[block] == 0:
            del self._evictable[block]
            slab = self._records[block // self.blocks_per_slab]
            if not slab.num_used:
                self._wake(slab)
            slab.num_used += 1
            self.num_used += 1
        self._refcounts[block] += 1

    def release(self, block: int) -> None:
        """Take a user away from a block; it becomes free with its last user."""
        count = self._refcounts[block] - 1
        assert count >= 0, f"block {block} is released more often than taken"
        self._refcounts[block] = count
        if count:
            return
        slab = self._records[block // self.blocks_per_slab]
        if self._hashes[block] is None:
            self._put_plain(slab, block)
            if self.emptied is not None:
                self.emptied.append(block)
        else:
            self._evictable[block] = None
        self.num_used -= 1
        slab.num_used -= 1
        if not slab.num_used:
            self._rest(slab)

    def find(self, prefix_hash: bytes) -> int | None:
        """The block that holds this prefix's last tokens, if it is cached.

        It can be shared until another block of any model is taken. Idle slabs that guarantees of
        other models need are given up first.
        """
        block = self._by_hash.get(prefix_hash)
        if block is not None and self._slabs.slack < self.account.num_spare:
            self.account.settle()
            return self._by_hash.get(prefix_hash)
        return block

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
        self._unname(block)
        if block not in self._evictable:
            return
        del self._evictable[block]
        slab = self._records[block // self.blocks_per_slab]
        self._put_plain(slab, block)
        if slab.number in self._idle and len(slab.plain) == self.blocks_per_slab:
            del self._idle[slab.number]
            self.account.note_idle(-1)
            self._rest(slab)

    def give_up_idle(self) -> int:
        """Evict everything in the idle slab that was used least recently, which it loses."""
        number, _ = self._idle.popitem(last=False)
        slab, first = self._records[number], number * self.blocks_per_slab
        for block in reversed(range(first, first + self.blocks_per_slab)):
            if self._hashes[block] is None:
                continue
            self._unname(block)
            del self._evictable[block]
            slab.plain.append(block)
            if self.emptied is not None:
                self.emptied.append(block)
        self._close(slab)
        return number

    def check_invariants(self) -> None:
        """Assert that every block is free exactly when unused, and in the right list."""
        slabs = [slab for slab in self._records.values() if slab.opened]
        assert len(slabs) == self.account.num_slabs
        num_used = 0
        for slab in slabs:
            num_used += slab.num_used
            self._check_slab(slab)
        assert num_used == self.num_used == len(self._refcounts) - self._refcounts.count(0)
        hashes = {h: b for b, h in enumerate(self._hashes) if h is not None}
        assert hashes == self._by_hash
        assert all(self._records[b // self.blocks_per_slab].opened for b in hashes.values())
        assert all(self._hashes[block] is not None for block in self._evictable)
        assert self._idle.keys() == {slab.number for slab in slabs if not slab.num_used}
        assert len(self._idle) == self.account.num_idle
        roomy = {slab.number for opened, slab in self._roomy if opened == slab.opened}
        assert roomy == {slab.number for slab in slabs if slab.plain}
        assert not self._roomy or self._roomy[0][0] == self._roomy[0][1].opened

    def _check_slab(self, slab: _Slab) -> None:
        plain, first, num_used = set(slab.plain), slab.number * self.blocks_per_slab, 0
        assert len(plain) == len(slab.plain) < self.blocks_per_slab
        for block in range(first, first + self.blocks_per_slab):
            is_used, is_cached = self._refcounts[block] > 0, self._hashes[block] is not None
            num_used += is_used
            assert (block in plain) == (not is_used and not is_cached)
            assert (block in self._evictable) == (not is_used and is_cached)
        assert num_used == slab.num_used

    def _borrows_another(self) -> bool:
        """Borrow a slab, unless a cached block is to be evicted instead."""
        can_borrow = self._slabs.num_free > 0 and self.account.num_obtainable > 0
        if self._evictable and not can_borrow:
            return False
        number = self.account.borrow()
        slab = self._records.get(number)
        if slab is None:
            slab = self._records[number] = _Slab(number, self.blocks_per_slab)
        self._num_opened += 1
        slab.opened = self._num_opened
        heappush(self._roomy, (slab.opened, slab))
        return True

    def _evict(self) -> int:
        block, _ = self._evictable.popitem(last=False)
        self._unname(block)
        if self.emptied is not None:
            self.emptied.append(block)
        return block

    def _wake(self, slab: _Slab) -> None:
        """A slab without blocks in use is about to have one; it may be idle, or new."""
        if slab.number in self._idle:
            del self._idle[slab.number]
            self.account.note_idle(-1)

    def _rest(self, slab: _Slab) -> None:
        """A slab has no block in use any more: it is idle, or goes back."""
        if len(slab.plain) < self.blocks_per_slab:
            self._idle[slab.number] = None
            self.account.note_idle(1)
        else:
            self._close(slab)
            self.account.give_back(slab.number)

    def _put_plain(self, slab: _Slab, block: int) -> None:
        if not slab.plain:
            heappush(self._roomy, (slab.opened, slab))
        slab.plain.append(block)

    def _close(self, slab: _Slab) -> None:
        slab.opened = 0
        self._drop_closed()

    def _drop_closed(self) -> None:
        roomy = self._roomy
        while roomy and roomy[0][0] != roomy[0][1].opened:
            heappop(roomy)

    def _unname(self, block: int) -> None:
        prefix_hash = self._hashes[block]
        if prefix_hash is not None:
            del self._by_hash[prefix_hash]
            self._hashes[block] = None
