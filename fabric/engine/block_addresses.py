"""Where the blocks of a model lie in the slabs of a device's arena."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fabric.engine.memory_plan import STEP_BYTES, DeviceMemory, rounded_up


@dataclass(frozen=True, slots=True)
class BlockAddresses:
    """Where the blocks of one model begin, in steps of the arena.

    Block ``i`` lies in slab ``i // blocks_per_slab``; slabs are ``steps_per_slab`` long, and the
    blocks in them ``steps_per_block``.
    """

    blocks_per_slab: int
    steps_per_slab: int
    steps_per_block: int

    @classmethod
    def in_slabs(cls, memory: DeviceMemory, model: int, block_bytes: int) -> "BlockAddresses":
        """How a rank cuts its slabs for the model at this place; ``block_bytes`` are its own."""
        steps_per_block = rounded_up(block_bytes, STEP_BYTES) // STEP_BYTES
        blocks_per_slab = memory.blocks_per_slab[model]
        assert blocks_per_slab * steps_per_block * STEP_BYTES <= memory.slab_bytes
        return cls(blocks_per_slab, memory.slab_bytes // STEP_BYTES, steps_per_block)

    @classmethod
    def dense(cls) -> "BlockAddresses":
        """Where blocks begin in a tensor of nothing but them: block ``i`` at ``i``."""
        return cls(1, 1, 1)

    def step(self, block: int) -> int:
        """Where one block begins."""
        slab, place = divmod(block, self.blocks_per_slab)
        return slab * self.steps_per_slab + place * self.steps_per_block

    def steps(self, blocks: Sequence[int] | Sequence[tuple[int, int]]) -> NDArray[np.int64]:
        """Where blocks begin, or pairs of them; of the same shape."""
        slabs, places = np.divmod(np.asarray(blocks, np.int64), self.blocks_per_slab)
        found: NDArray[np.int64] = slabs * self.steps_per_slab + places * self.steps_per_block
        return found
