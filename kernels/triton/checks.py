"""Checks of operands before kernels see their addresses; each names what it got.

Shapes, strides, dtypes and devices are checked always, contents only on request: looking at them
waits for the device, which a captured step must not. Kernels skip slots and read blocks as zeros
that lie outside their cache, so that bad contents never touch other memory.
"""

import torch
from torch import Tensor

from kernels.layouts import check_contiguous_blocks, check_contiguous_heads, describe
from kernels.ops import RaggedBatch, ShapeError

DTYPES = (torch.float32, torch.bfloat16)


class OperandChecks:
    """Checks for the tensors of one device.

    Args:
        device: Where operands must be; without an index, any device of its type.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def is_here(self, x: Tensor) -> bool:
        """Whether a tensor is on the device."""
        is_type = x.device.type == self._device.type
        return is_type and (self._device.index is None or x.device.index == self._device.index)

    def matrix(self, name: str, x: Tensor) -> None:
        """``[rows, columns]`` with contiguous columns, in float32 or bfloat16."""
        if x.dim() != 2 or (x.stride(1) != 1 and x.shape[1] != 1):
            raise ShapeError(f"{name} is {describe(x)}; a matrix with contiguous rows is needed")
        self._operand(name, x)

    def like(self, name: str, x: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """Contiguous on the device, of this shape and dtype."""
        is_fitting = x.shape == shape and x.dtype is dtype and x.is_contiguous()
        if not is_fitting or not self.is_here(x):
            raise ShapeError(
                f"{name} is {describe(x)}; contiguous {dtype}{list(shape)} on {self._device} is "
                "needed"
            )

    def heads(self, name: str, x: Tensor) -> None:
        """``[num_tokens, num_heads, head_dim]`` with contiguous heads; rows may be strided."""
        check_contiguous_heads(name, x)
        self._operand(name, x)

    def cache(self, name: str, kv_cache: Tensor) -> None:
        """A cache on the device, whose blocks may lie at any distance."""
        check_contiguous_blocks(name, kv_cache)
        if not self.is_here(kv_cache):
            raise ShapeError(f"{name} is {describe(kv_cache)}; it must be on {self._device}")

    def cache_for(self, kv_cache: Tensor, layer: int, x: Tensor) -> None:
        """A cache that has the layer, and whose heads ``x``'s heads fit."""
        self.cache("kv_cache", kv_cache)
        shape = kv_cache.shape
        if not 0 <= layer < shape[1]:
            raise ShapeError(f"layer {layer} is used of a cache of {shape[1]} layers")
        if kv_cache.dtype is not x.dtype or x.shape[2] != shape[5] or x.shape[1] % shape[3]:
            raise ShapeError(f"heads are {describe(x)}; kv_cache is {describe(kv_cache)}")

    def batch(self, batch: RaggedBatch, num_tokens: int) -> tuple[int, int]:
        """A batch's shapes; returns its number of sequences and its block tables' width."""
        num_seqs, max_blocks = batch.block_tables.shape
        int32 = torch.int32
        self.like("positions", batch.positions, (num_tokens,), int32)
        self.like("query_start", batch.query_start, (num_seqs + 1,), int32)
        self.like("context_lens", batch.context_lens, (num_seqs,), int32)
        self.like("block_tables", batch.block_tables, (num_seqs, max_blocks), int32)
        return num_seqs, max_blocks

    def _operand(self, name: str, x: Tensor) -> None:
        if x.dtype not in DTYPES or not self.is_here(x):
            raise ShapeError(
                f"{name} is {describe(x)}; a float32 or bfloat16 tensor on {self._device} is needed"
            )


def check_slots(slots: Tensor, num_slots: int) -> None:
    """Check what slots say; waits for the device.

    Raises:
        IndexError: A slot is outside the cache.
    """
    for slot in slots.tolist():
        if not 0 <= slot < num_slots:
            raise IndexError(f"slot {slot} is outside 0 to {num_slots - 1}")


def check_contents(batch: RaggedBatch, num_blocks: int, block_size: int) -> None:
    """Check what a batch's tensors say; waits for the device.

    Raises:
        ValueError: Lengths, positions and the room of the block tables don't fit.
        IndexError: A block is outside the cache.
    """
    starts = batch.query_start.tolist()
    positions = batch.positions.tolist()
    room = batch.block_tables.shape[1] * block_size
    if starts[0] != 0 or starts[-1] != len(positions):
        raise ValueError(f"query_start {starts} does not share out {len(positions)} tokens")
    for i, context_len in enumerate(batch.context_lens.tolist()):
        first, end = starts[i], starts[i + 1]
        if context_len == 0:
            continue
        if not 0 <= end - first <= context_len:
            raise ValueError(
                f"sequence {i} has {end - first} new tokens, a context of {context_len}"
            )
        if context_len > room:
            raise ValueError(f"sequence {i} has a context of {context_len} and room for {room}")
        for token in range(first, end):
            expected = context_len - end + token
            if positions[token] != expected:
                raise ValueError(f"token {token} is at position {positions[token]}, not {expected}")
        for block in batch.block_tables[i, : -(-context_len // block_size)].tolist():
            if not 0 <= block < num_blocks:
                raise IndexError(f"block {block} is outside 0 to {num_blocks - 1}")
