"""Iterations that decode are recorded once for each size, and then replayed: no launch by launch.

A recorded iteration reads and writes memory at addresses that never change, and always computes as
many sequences. So there are buckets: of sequences, and of blocks in the widest table. An iteration
takes the smallest that holds it; what is left over is filled with *padding*, sequences of one
token whose block nobody has (:class:`fabric.engine.arena.Arena` keeps one). A kernel needs to know
nothing of it, and since rows don't depend on each other, no other row changes by a bit.

Source: CUDA graphs for decoding as in vLLM (Kwon et al., SOSP 2023) and its descendants.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fabric.engine.step_inputs import PlacedStep, Step, StepInputs
from kernels.ops import RaggedBatch

# Beyond, an iteration computes long enough to launch its kernels meanwhile.
MAX_SEQS = 512
_SMALL = (1, 2, 4)
_SEQS_STEP = 8
_LEAST_BLOCKS = 16

logger = logging.getLogger(__name__)

Replay = Callable[[], None]


class Recorder(Protocol):
    """Records what a device is given to do, such as into CUDA graphs."""

    def record(self, run: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        """Record a call, which may be carried out or not.

        Returns:
            What carries it out again, and the tensor that the call returned: every replay writes
            there anew.
        """
        ...

    def clear(self) -> None:
        """Nothing that was recorded is replayed any more: its memory may go."""
        ...


@dataclass(frozen=True, slots=True)
class Bucket:
    """The size of recorded iterations: sequences, and blocks of each sequence's table."""

    num_seqs: int
    num_blocks: int

    @classmethod
    def of(cls, num_seqs: int, num_blocks: int) -> "Bucket":
        """The smallest that holds so many: 1, 2, 4, then multiples of 8; powers of 2 from 16."""
        small = [size for size in _SMALL if size >= num_seqs]
        size = small[0] if small else -(-num_seqs // _SEQS_STEP) * _SEQS_STEP
        return cls(size, max(_LEAST_BLOCKS, 1 << (num_blocks - 1).bit_length()))


@dataclass(slots=True)
class _Recorded:
    """One bucket's inputs on the device; replay and output once it has been recorded."""

    place: PlacedStep
    replay: Replay | None = None
    output: Tensor | None = None


class DecodeGraphs:
    """Runs iterations in which every sequence has one token."""

    def __init__(
        self,
        run: Callable[[Step], Tensor],
        inputs: StepInputs,
        recorder: Recorder,
        padding: int,
        block_size: int,
    ) -> None:
        """Begin with nothing recorded.

        Args:
            run: Computes logits ``[num_rows, local_vocab_size]`` on the device.
            inputs: Fill the buckets' memory.
            recorder: Records ``run``.
            padding: Where the block begins that nobody has, as block tables have it.
            block_size: Tokens of a block.
        """
        self._run = run
        self._inputs = inputs
        self._recorder = recorder
        self._padding = padding
        self._block_size = block_size
        self._recorded: dict[Bucket, _Recorded] = {}
        self._is_given_up = False

    @property
    def num_recorded(self) -> int:
        """Buckets that are replayed by now."""
        return sum(recorded.replay is not None for recorded in self._recorded.values())

    def run(self, step: Step) -> Tensor | None:
        """Compute an iteration's logits; the next call overwrites them.

        The first of a bucket runs as it is, which lets kernels be compiled and tuned, and brings
        weights that are still on their way; the second one is recorded.

        Args:
            step: On the host.

        Returns:
            ``[num_seqs, local_vocab_size]`` for all sequences, whatever ``step.rows``; None if
            this is no iteration for recording.
        """
        num_seqs = len(step.batch.context_lens)
        is_decode = len(step.token_ids) == num_seqs
        if self._is_given_up or not is_decode or num_seqs > MAX_SEQS:
            return None
        bucket = Bucket.of(num_seqs, step.batch.block_tables.shape[1])
        padded = self._padded(step, bucket)
        recorded = self._recorded.get(bucket)
        if recorded is None:
            place = PlacedStep.like(padded, self._inputs.device)
            self._inputs.fill(place, padded)
            logits = self._run(place.step)
            # Not before it has succeeded: weights may turn out not to come.
            self._recorded[bucket] = _Recorded(place)
            return logits[:num_seqs]
        self._inputs.fill(recorded.place, padded)
        return self._replay(recorded)[:num_seqs]

    def clear(self) -> None:
        """Forget all recordings, as when the weights go that they read."""
        self._recorded.clear()
        self._recorder.clear()

    def _replay(self, recorded: _Recorded) -> Tensor:
        step = recorded.place.step
        if recorded.replay is None:
            try:
                recorded.replay, recorded.output = self._recorder.record(lambda: self._run(step))
            except RuntimeError as error:
                # Slower is better than not at all.
                logger.warning("iterations are not recorded: %s", error)
                self._is_given_up = True
                return self._run(step)
        recorded.replay()
        assert recorded.output is not None
        return recorded.output

    def _padded(self, step: Step, bucket: Bucket) -> Step:
        """The step with padding up to the bucket's size, and logits of all rows."""
        batch, size = step.batch, bucket.num_seqs
        tables = torch.zeros((size, bucket.num_blocks), dtype=torch.int32)
        tables[:, 0] = self._padding
        num_seqs, num_blocks = batch.block_tables.shape
        tables[:num_seqs, :num_blocks] = batch.block_tables
        padded = RaggedBatch(
            positions=_extended(batch.positions, size, 0),
            slots=_extended(batch.slots, size, self._padding * self._block_size),
            query_start=torch.arange(size + 1, dtype=torch.int32),
            context_lens=_extended(batch.context_lens, size, 1),
            block_tables=tables,
        )
        return Step(_extended(step.token_ids, size, 0), padded, torch.arange(size))


def _extended(values: Tensor, size: int, filler: int) -> Tensor:
    extended = values.new_full((size,), filler)
    extended[: len(values)] = values
    return extended
