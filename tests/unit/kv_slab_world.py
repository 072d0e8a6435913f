"""Models that share one device's slabs at random, with books of their own to compare with."""

import pickle
from collections import Counter
from random import Random

from fabric.kv.block_pool import BlockPool
from fabric.kv.slabs import SlabPool

NUM_SLABS = 12
BLOCKS_PER_SLAB = (1, 2, 3, 5)


class SlabWorld:
    """Takes one random step after another and asserts after each what must always hold."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.slabs = SlabPool(NUM_SLABS)
        self.pools = [BlockPool(self.slabs, n, notes_emptied=True) for n in BLOCKS_PER_SLAB]
        self.leasts = [0] * len(self.pools)
        self.held: list[Counter[int]] = [Counter() for _ in self.pools]
        self.names: list[list[bytes]] = [[] for _ in self.pools]
        self.touched: set[int] = set()
        self.num_names = 0
        self.log: list[tuple[str, int, int]] = []

    def copy(self) -> "SlabWorld":
        """The same world, on its own from here."""
        copied: SlabWorld = pickle.loads(pickle.dumps(self))
        return copied

    def step(self) -> None:
        """One random operation of a random model, if it can be done at all."""
        steps = ["take"] * 8 + ["release"] * 12 + ["share"] * 3
        steps += ["forget", "bounds", "bounds", "charge", "discharge", "discharge"]
        name = self.random.choice(steps)
        was_promised = self.slabs.slack >= 0
        getattr(self, f"_{name}")(self.random.randrange(len(self.pools)))
        assert name == "bounds" or not was_promised or self.slabs.slack >= 0, name
        self.check()

    def take(self, model: int) -> int:
        """Take a block, which a later one may find."""
        pool = self.pools[model]
        block = pool.take()
        assert not self.held[model][block]
        self.held[model][block] = 1
        self.log.append(("take", model, block))
        if self.random.random() < 0.6:
            self.num_names += 1
            pool.register(block, b"%d" % self.num_names)
            self.names[model] = [*self.names[model][-20:], b"%d" % self.num_names]
        return block

    def release(self, model: int, block: int) -> None:
        """Give up one use of a block."""
        self.pools[model].release(block)
        self.held[model] -= Counter([block])

    def check(self) -> None:
        """Assert that no slab is in two hands, and that memory stays within the budget."""
        self.slabs.check_invariants()
        in_use: Counter[int] = Counter()
        for pool, held in zip(self.pools, self.held, strict=True):
            pool.check_invariants()
            assert pool.users() == dict(held)
            in_use.update({block // pool.blocks_per_slab for block in held})
            if pool.account.num_slabs > pool.account.most:
                assert pool.account.num_obtainable == 0
        assert all(count == 1 for count in in_use.values())
        self.touched -= set(self.slabs.take_punched())
        self.touched |= in_use.keys()
        assert len(self.touched) + self.slabs.num_charged <= NUM_SLABS

    def end_all(self) -> None:
        """Release and forget everything, and discharge the weights."""
        self.slabs.discharge(self.slabs.num_charged)
        for model, held in enumerate(self.held):
            for block in held.elements():
                self.pools[model].release(block)
            for block in [*self.pools[model]._evictable]:
                self.pools[model].forget(block)
            held.clear()

    def _take(self, model: int) -> None:
        pool, account = self.pools[model], self.pools[model].account
        if not pool.num_free:
            return
        num_free, num_slabs = pool.num_free, account.num_slabs
        self.take(model)
        assert pool.num_free == num_free - 1
        assert account.num_slabs <= max(account.most, num_slabs)

    def _release(self, model: int) -> None:
        if self.held[model]:
            self.release(model, self.random.choice(sorted(self.held[model])))

    def _share(self, model: int) -> None:
        """As admission does: find a prefix of several blocks, then use all of it."""
        pool = self.pools[model]
        names = self.random.sample(self.names[model], min(2, len(self.names[model])))
        found = [block for name in names if (block := pool.find(name)) is not None]
        num_left = pool.num_free - sum(1 for block in found if not pool.refcount(block))
        assert num_left >= 0
        for block in found:
            pool.share(block)
            self.held[model][block] += 1
            self.log.append(("share", model, block))
        assert pool.num_free == num_left

    def _forget(self, model: int) -> None:
        blocks = list(self.pools[model]._evictable)
        if blocks:
            self.pools[model].forget(self.random.choice(blocks))

    def _bounds(self, model: int) -> None:
        """Promise no more than there can be, if all but weights were free."""
        others = sum(self.leasts) - self.leasts[model]
        limit = max(0, NUM_SLABS - self.slabs.num_charged - others)
        least = self.random.choice((0, self.random.randint(0, min(4, limit))))
        self.leasts[model] = least
        self.pools[model].account.set_bounds(least, self.random.randint(max(least, 3), NUM_SLABS))

    def _charge(self, _: int) -> None:
        self.slabs.charge(self.random.randint(0, min(5, self.slabs.num_chargeable)))

    def _discharge(self, _: int) -> None:
        self.slabs.discharge(self.random.randint(0, self.slabs.num_charged))
