"""The worker's view of its sequences: tokens and block tables in arrays that batches index."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fabric.core.sampling import SamplingParams
from fabric.engine.adjustment import Adjustment
from fabric.engine.block_addresses import BlockAddresses
from fabric.scheduler.output import NewSequence, ScheduledSequence
from kernels.ops import RaggedBatch

IntArray = NDArray[np.int64]


@dataclass(slots=True)
class SequenceRow:
    """What a worker knows of one sequence; ``row`` is its place in the table's arrays.

    ``sampled`` is the token that it was given here last; the sampler keeps ``adjustment``.
    """

    row: int
    index: int
    num_prompt_tokens: int
    num_tokens: int
    num_blocks: int
    sampling: SamplingParams
    sampled: int = 0
    adjustment: Adjustment | None = None

    @property
    def num_output_tokens(self) -> int:
        """Tokens sampled so far."""
        return self.num_tokens - self.num_prompt_tokens


class SequenceTable:
    """Follows the scheduler's changes, and turns an iteration into a ragged batch.

    Tokens and block tables live in two arrays with one row a sequence, so that building a batch
    costs a few vectorised look-ups, not a walk over each sequence. Block tables hold where blocks
    begin, as ``addresses`` say, which is what kernels index a ``kv_cache`` with.
    """

    def __init__(
        self, max_model_len: int, block_size: int, addresses: BlockAddresses, num_rows: int = 8
    ) -> None:
        self._block_size = block_size
        self._addresses = addresses
        max_blocks = -(-max_model_len // block_size)
        self._tokens = np.zeros((num_rows, max_model_len + 1), dtype=np.int64)
        self._blocks = np.zeros((num_rows, max_blocks), dtype=np.int32)
        self._free_rows = list(range(num_rows - 1, -1, -1))
        self._sequences: dict[int, SequenceRow] = {}

    def __len__(self) -> int:
        return len(self._sequences)

    def __getitem__(self, key: int) -> SequenceRow:
        return self._sequences[key]

    def release(self, key: int) -> None:
        """Forget a sequence."""
        self._free_rows.append(self._sequences.pop(key).row)

    def clear(self) -> None:
        """Forget all sequences."""
        for key in list(self._sequences):
            self.release(key)

    def add(self, new: NewSequence) -> None:
        """Learn a sequence: its tokens so far and its block table."""
        if not self._free_rows:
            self._grow()
        row = self._free_rows.pop()
        num_tokens = len(new.token_ids)
        self._tokens[row, :num_tokens] = new.token_ids
        self._blocks[row, : len(new.block_ids)] = self._addresses.steps(new.block_ids)
        self._sequences[new.key] = SequenceRow(
            row, new.index, new.num_prompt_tokens, num_tokens, len(new.block_ids), new.sampling
        )

    def update(self, item: ScheduledSequence) -> None:
        """Apply one iteration's changes to a sequence's tokens and block table.

        A token that the scheduler can't tell yet is the one that was sampled here.
        """
        sequence = self._sequences[item.key]
        num_tokens = sequence.num_tokens
        for token in item.new_token_ids:
            self._tokens[sequence.row, num_tokens] = token
            num_tokens += 1
        if item.num_computed_tokens + item.num_new_tokens > num_tokens:
            self._tokens[sequence.row, num_tokens] = sequence.sampled
            num_tokens += 1
        sequence.num_tokens = num_tokens
        if item.replaced_block is not None:
            position, block = item.replaced_block
            self._blocks[sequence.row, position] = self._addresses.step(block)
        if item.new_block_ids:
            end = sequence.num_blocks + len(item.new_block_ids)
            steps = self._addresses.steps(item.new_block_ids)
            self._blocks[sequence.row, sequence.num_blocks : end] = steps
            sequence.num_blocks = end

    def prompt_tokens(self, sequence: SequenceRow) -> IntArray:
        """A view of the prompt's token ids."""
        return self._tokens[sequence.row, : sequence.num_prompt_tokens]

    def output_tokens(self, sequence: SequenceRow) -> IntArray:
        """A view of the sampled token ids."""
        return self._tokens[sequence.row, sequence.num_prompt_tokens : sequence.num_tokens]

    def build_batch(
        self, scheduled: tuple[ScheduledSequence, ...]
    ) -> tuple[torch.Tensor, RaggedBatch]:
        """Lay the scheduled tokens out one after the other.

        Returns:
            Token ids ``[num_tokens]`` int64, and the batch that describes them.
        """
        places = [
            (self._sequences[item.key].row, item.num_computed_tokens, item.num_new_tokens)
            for item in scheduled
        ]
        rows, starts, counts = np.array(places).T
        if max(item.num_new_tokens for item in scheduled) == 1:
            # As most iterations are: all sequences decode.
            query_start = np.arange(len(scheduled) + 1, dtype=np.int32)
            token_rows, positions = rows, starts
        else:
            query_start = np.zeros(len(scheduled) + 1, dtype=np.int32)
            np.cumsum(counts, out=query_start[1:])
            token_rows = np.repeat(rows, counts)
            offsets = np.arange(query_start[-1]) - np.repeat(query_start[:-1], counts)
            positions = np.repeat(starts, counts) + offsets
        size = self._block_size
        numbers, offsets = np.divmod(positions, size)
        slots = self._blocks[token_rows, numbers].astype(np.int64) * size + offsets
        context_lens = starts + counts
        num_blocks = -(-int(context_lens.max()) // size)
        batch = RaggedBatch(
            positions=torch.from_numpy(positions.astype(np.int32)),
            slots=torch.from_numpy(slots),
            query_start=torch.from_numpy(query_start),
            context_lens=torch.from_numpy(context_lens.astype(np.int32)),
            block_tables=torch.from_numpy(self._blocks[rows, :num_blocks]),
        )
        return torch.from_numpy(self._tokens[token_rows, positions]), batch

    def _grow(self) -> None:
        num_rows = len(self._tokens)
        self._tokens = np.concatenate([self._tokens, np.zeros_like(self._tokens)])
        self._blocks = np.concatenate([self._blocks, np.zeros_like(self._blocks)])
        self._free_rows = list(range(2 * num_rows - 1, num_rows - 1, -1))
