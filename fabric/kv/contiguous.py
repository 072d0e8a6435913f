"""KV memory as before paging: one run of neighbouring blocks for a sequence, taken at once."""

from collections.abc import Sequence

from fabric.core.errors import InvalidRequest
from fabric.kv.block_pool import BlockPool
from fabric.kv.buddy import BlockRun, BuddyAllocator
from fabric.kv.manager import Allocation, KVCacheManager
from fabric.kv.prefix import PrefixChain


class ContiguousKVManager(KVCacheManager):
    """Stands in for paging in comparisons: nothing is shared, cached or parked.

    The first ``allocate`` of a sequence takes the run that it has for good: it works only under
    policies that reserve all that a sequence can need (:mod:`fabric.scheduler.reservations`). A
    reservation beyond the largest run is cut to it. All blocks of the pool are taken at once.

    Source: vLLM (Kwon et al., SOSP 2023), section 6.1, the Orca baselines; Orca (Yu et al.,
    OSDI 2022), section 4.2.
    """

    def __init__(self, pool: BlockPool, block_size: int) -> None:
        super().__init__(pool, block_size, prefix_cache=False)
        num_blocks = pool.num_blocks
        assert {pool.take() for _ in range(num_blocks)} == set(range(num_blocks))
        self._buddy = BuddyAllocator(num_blocks)
        self._runs: dict[int, BlockRun] = {}

    @property
    def num_free_blocks(self) -> int:
        """Blocks outside of all runs; they may be too scattered to be of use."""
        return self._buddy.num_free

    def fragmented_bytes(self, block_bytes: int, slab_bytes: int) -> int:
        """Bytes of the model's slabs that are in no run."""
        num_taken = self.num_blocks - self._buddy.num_free
        return self.account.num_slabs * slab_bytes - num_taken * block_bytes

    @property
    def num_used_blocks(self) -> int:
        """Blocks in runs, whether or not they are filled."""
        return self.num_blocks - self.num_free_blocks

    def num_blocks_for(self, num_tokens: int) -> int:
        """Blocks of a run that holds this many tokens."""
        return 1 << (super().num_blocks_for(num_tokens) - 1).bit_length()

    def can_admit(self, num_tokens: int, cached: Sequence[int], num_spare_blocks: int) -> bool:
        """Whether there is a run for a sequence; those that run need no spare blocks."""
        return self._buddy.can_take(self._run_size(num_tokens))

    def allocate(self, key: int, num_tokens: int, num_computed_tokens: int) -> Allocation | None:
        """Take a new sequence's run, or use more of the one that it has.

        Returns:
            The blocks of the run that tokens up to ``num_tokens`` use for the first time, or
            None: no such run is free, or the sequence's own is too short.
        """
        blocks, run = self._tables[key].blocks, self._runs.get(key)
        num_needed = super().num_blocks_for(num_tokens)
        if run is None:
            run = self._buddy.take(self._run_size(num_tokens))
            if run is None:
                return None
            self._runs[key] = run
        elif num_needed > run.size:
            return None
        new_blocks = range(run.start + len(blocks), run.start + min(num_needed, run.size))
        blocks.extend(new_blocks)
        return Allocation(tuple(new_blocks))

    def fork(self, parent_key: int, child_key: int, chain: PrefixChain) -> None:
        """Refuse: a run belongs to one sequence.

        Raises:
            InvalidRequest: Always.
        """
        raise InvalidRequest.of("sampling.n", "must be 1: contiguous KV memory can't be shared")

    def free(self, key: int) -> None:
        """Give the sequence's run back."""
        del self._tables[key]
        if key in self._runs:
            self._buddy.release(self._runs.pop(key))

    def num_own_blocks(self, key: int) -> int:
        """Blocks of the sequence's run, used or not."""
        return self._runs[key].size if key in self._runs else 0

    def park(self, key: int, num_tokens: int) -> bool:
        """Nothing is parked."""
        return False

    def check_invariants(self) -> None:
        """Assert that runs don't overlap, that none is lost, and that tables stay in theirs."""
        self._buddy.check_invariants()
        taken = {b for run in self._runs.values() for b in range(run.start, run.start + run.size)}
        assert len(taken) == sum(run.size for run in self._runs.values())
        assert len(taken) + self._buddy.num_free == self.num_blocks
        for key, table in self._tables.items():
            run = self._runs.get(key, BlockRun(0, 0))
            assert len(table.blocks) <= run.size
            assert table.blocks == list(range(run.start, run.start + len(table.blocks)))

    def _run_size(self, num_tokens: int) -> int:
        return min(self.num_blocks_for(num_tokens), self._buddy.largest_run)
