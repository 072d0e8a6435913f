"""Runs of neighbouring blocks whose sizes are powers of two: the buddy system."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BlockRun:
    """Blocks ``start .. start + size - 1``; the size is a power of two and divides the start."""

    start: int
    size: int


class BuddyAllocator:
    """Gives runs of the block ids ``0 .. num_blocks - 1``, the lowest of the smallest that fit.

    A run too large is halved until it fits; a run given back joins its other half as often as
    that is free. ``num_blocks`` need not be a power of two: the ids are a row of such runs.

    Source: Knuth, The Art of Computer Programming 1, section 2.5; as the baselines of vLLM (Kwon
    et al., SOSP 2023), section 6.1, use it.
    """

    def __init__(self, num_blocks: int) -> None:
        assert num_blocks > 0
        self.num_blocks = num_blocks
        self.num_free = num_blocks
        self._free: list[set[int]] = [set() for _ in range(num_blocks.bit_length())]
        start = 0
        for order in reversed(range(num_blocks.bit_length())):
            if num_blocks >> order & 1:
                self._free[order].add(start)
                start += 1 << order

    @property
    def largest_run(self) -> int:
        """Blocks of the largest run that ``take`` can ever give."""
        return 1 << self.num_blocks.bit_length() - 1

    def can_take(self, num_blocks: int) -> bool:
        """Whether a run of so many blocks is free."""
        return any(self._free[_order_of(num_blocks) :])

    def take(self, num_blocks: int) -> BlockRun | None:
        """Give a run of at least so many blocks, rounded up to a power of two; None: none left."""
        wanted = _order_of(num_blocks)
        order = next((i for i in range(wanted, len(self._free)) if self._free[i]), None)
        if order is None:
            return None
        start = min(self._free[order])
        self._free[order].remove(start)
        for smaller in reversed(range(wanted, order)):
            self._free[smaller].add(start + (1 << smaller))
        self.num_free -= 1 << wanted
        return BlockRun(start, 1 << wanted)

    def release(self, run: BlockRun) -> None:
        """Take back a run that ``take`` gave."""
        self.num_free += run.size
        start, order = run.start, _order_of(run.size)
        while (buddy := start ^ 1 << order) in self._free[order]:
            self._free[order].remove(buddy)
            start, order = min(start, buddy), order + 1
        self._free[order].add(start)

    def check_invariants(self) -> None:
        """Assert that free runs don't overlap, have no free other half, and sum up."""
        blocks: set[int] = set()
        for order, starts in enumerate(self._free):
            for start in starts:
                assert start % (1 << order) == 0
                assert start ^ 1 << order not in starts
                blocks |= set(range(start, start + (1 << order)))
        assert len(blocks) == self.num_free == sum(len(s) << i for i, s in enumerate(self._free))
        assert blocks <= set(range(self.num_blocks))


def _order_of(num_blocks: int) -> int:
    return (num_blocks - 1).bit_length()
