"""Block tables of all sequences over one pool: sharing, copy-on-write, prefix cache."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fabric.kv.block_pool import BlockPool
from fabric.kv.parking import Parking
from fabric.kv.prefix import PrefixChain
from fabric.kv.slabs import SlabAccount
from fabric.kv.table import BlockTable, Residence
from fabric.kv.transfer import BlockOrders, ParkingSpace, Tier, TransferResult


@dataclass(frozen=True, slots=True)
class Allocation:
    """What changed in a block table: blocks at its end, and (position, new block) if copied."""

    new_block_ids: tuple[int, ...] = ()
    replaced_block: tuple[int, int] | None = None


_UNCHANGED = Allocation()
_NO_ORDERS = BlockOrders()


class KVCacheManager:
    """Gives sequences, known by integer keys, the blocks that their tokens' KV needs.

    A block may be in several tables: forks share all of theirs, and sequences with the same
    prefix share its full blocks. Nobody writes to a shared block: ``allocate`` replaces it first
    and notes the copy to make (``take_copies``).

    A sequence is resident, with all of its blocks on the device, or parked, or on its way
    (:class:`fabric.kv.parking.Parking`); only resident ones may be allocated for, registered or
    forked. Blocks that the pool notes as emptied are poisoned.

    Source: vLLM (Kwon et al., SOSP 2023), sections 4.2 to 4.4.
    """

    def __init__(
        self,
        pool: BlockPool,
        block_size: int,
        prefix_cache: bool = True,
        space: ParkingSpace = ParkingSpace(),  # noqa: B008 (a value without state)
        numbers: Iterator[int] | None = None,
    ) -> None:
        """Start without sequences; the managers of a group share the transfers' ``numbers``."""
        self.block_size = block_size
        self.prefix_cache = prefix_cache
        self.space = space
        self._pool = pool
        self._parking = Parking(pool, space, block_size, prefix_cache, self._release, numbers)
        self._tables: dict[int, BlockTable] = {}
        self._copies: dict[int, int] = {}
        self._held: list[int] = []

    @property
    def blocks_per_slab(self) -> int:
        """Blocks of this model in a slab."""
        return self._pool.blocks_per_slab

    @property
    def account(self) -> SlabAccount:
        """What the model has of the device's slabs."""
        return self._pool.account

    @property
    def num_blocks(self) -> int:
        """Blocks that a sequence which is alone could have at most."""
        return self._pool.num_blocks

    @property
    def num_free_blocks(self) -> int:
        """Blocks that no sequence holds; some may be cached."""
        return self._pool.num_free

    @property
    def num_used_blocks(self) -> int:
        """Blocks that sequences hold, or copies under way."""
        return self._pool.num_used

    @property
    def num_cached_blocks(self) -> int:
        """Blocks that a new sequence with the same prefix could share."""
        return self._pool.num_cached

    @property
    def num_transfers(self) -> int:
        """Transfers under way."""
        return self._parking.num_flights

    @property
    def num_leaving_blocks(self) -> int:
        """Blocks that transfers under way are about to free."""
        return self._parking.num_leaving

    def fragmented_bytes(self, block_bytes: int, slab_bytes: int) -> int:
        """Bytes of the model's slabs that are in no block which is in use or cached."""
        return self.account.num_slabs * slab_bytes - self._pool.num_kept * block_bytes

    def num_parked_blocks(self, tier: Tier) -> int:
        """Slots of a tier that are in use."""
        slots = self._parking.slots.get(tier)
        return 0 if slots is None else slots.num_blocks - slots.num_free

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
        self._tables[key] = BlockTable(cached, chain, len(cached))

    def allocate(self, key: int, num_tokens: int, num_computed_tokens: int) -> Allocation | None:
        """Make room to write the KV of tokens ``num_computed_tokens .. num_tokens - 1``.

        Returns:
            The changes to the sequence's table, or None (and nothing changed) if too few blocks
            are free.
        """
        pool, blocks = self._pool, self._tables[key].blocks
        block_size, num_blocks = self.block_size, len(blocks)
        first = num_computed_tokens // block_size
        is_shared = first < num_blocks and pool.refcount(blocks[first]) > 1
        if num_tokens <= num_blocks * block_size and not is_shared:
            return _UNCHANGED
        num_new = max(0, -(-num_tokens // block_size) - num_blocks)
        if num_new + is_shared > pool.num_free:
            return None
        replaced = (first, self._replace(blocks, first)) if is_shared else None
        new_blocks = tuple([pool.take() for _ in range(num_new)])
        blocks.extend(new_blocks)
        return Allocation(new_blocks, replaced)

    def register(self, key: int, num_computed_tokens: int) -> None:
        """Put the sequence's full blocks into the prefix cache, once their KV is stored."""
        if not self.prefix_cache:
            return
        table = self._tables[key]
        num_full = num_computed_tokens // self.block_size
        if num_full <= table.num_registered:
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
        if key in self._parking.tables:
            self._parking.free(key)
            return
        for block in reversed(self._tables.pop(key).blocks):
            self._release(block)

    def residence(self, key: int) -> Residence:
        """Where the KV of a sequence is that has a table."""
        table = self._parking.tables.get(key)
        return Residence.RESIDENT if table is None else table.residence

    def places(self, key: int) -> tuple[int, tuple[Tier, ...]]:
        """How many of a sequence's blocks are on the device, and the tier of each other one."""
        table = self._parking.tables.get(key)
        if table is None:
            return len(self._tables[key].blocks) if key in self._tables else 0, ()
        tiers = tuple(tier for tier, _ in table.slots.values())
        return len(table.blocks) - len(tiers), tiers

    def num_own_blocks(self, key: int) -> int:
        """Device blocks that become free if a resident sequence goes."""
        users = self._parking.num_users
        return sum(1 for block in self._tables[key].blocks if users(block) == 1)

    def park(self, key: int, num_tokens: int) -> bool:
        """Begin to move a resident sequence, whose first ``num_tokens`` have KV, off the device.

        Returns:
            False, and nothing changed, if the tiers have no room, or a copy-on-write of this
            iteration has yet to fill one of its blocks.
        """
        table = self._tables[key]
        if not self._copies.keys().isdisjoint(table.blocks):
            return False
        if not self._parking.park(key, table, num_tokens):
            return False
        del self._tables[key]
        return True

    def park_idle(self) -> int:
        """Begin to move off the device what only parked sequences hold; return how many blocks."""
        return self._parking.park_idle()

    def resume(self, key: int) -> bool:
        """Make a sequence resident again that has not left the device yet; False if it has."""
        table = self._parking.tables[key]
        if not self._parking.resume(key):
            return False
        self._tables[key] = table
        return True

    def fetch(self, key: int, num_tokens: int, num_spare_blocks: int) -> bool:
        """Begin to move a parked sequence onto the device, with blocks for ``num_tokens``.

        Returns:
            False, and nothing changed, if that would leave fewer than ``num_spare_blocks`` free.
        """
        table = self._parking.tables[key]
        if not self._parking.fetch(key, self.num_blocks_for(num_tokens), num_spare_blocks):
            return False
        self._adopt(key, table)
        return True

    def finish_transfer(self, result: TransferResult) -> int | None:
        """Take in that a transfer is over; return the sequence that waited for it, if any did.

        If it failed, the sequence is COPYING_OUT still, and should be resumed, fetched (if part
        of it has left) or freed, or COPYING_IN, and must be freed.
        """
        waiter = self._parking.finish(result)
        if waiter is None:
            return None
        self._adopt(*waiter)
        return waiter[0]

    def abandon_transfer(self, number: int) -> int | None:
        """Give a transfer up that takes too long; return the sequence that waited for it.

        That sequence is as after a failed transfer. What the copy may still touch stays held.
        """
        return self._parking.abandon(number)

    def take_orders(self) -> BlockOrders:
        """What workers must do before the next iteration; due before ``take_copies``."""
        poisoned: tuple[int, ...] = ()
        if self._pool.emptied:
            poisoned = tuple(dict.fromkeys(self._pool.emptied))
            self._pool.emptied.clear()
        started = self._parking.take_started()
        return BlockOrders(poisoned, started) if poisoned or started else _NO_ORDERS

    def take_copies(self) -> tuple[tuple[int, int], ...]:
        """The (source, target) block copies due before the next computation, all independent."""
        if not self._copies and not self._held:
            return ()
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
        blocks, places = self._parking.holds()
        users.update(blocks)
        assert self._pool.users() == dict(users)
        for tier, slots in self._parking.slots.items():
            slots.check_invariants()
            assert slots.users() == {slot: n for (t, slot), n in places.items() if t is tier}

    def _adopt(self, key: int, table: BlockTable) -> None:
        if table.residence is Residence.RESIDENT:
            self._tables[key] = table

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
