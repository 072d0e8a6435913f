"""Takes what an iteration reads from where it is built, on the host, to the device."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fabric.engine.pinned import Cuda, PinnedRing
from kernels.ops import RaggedBatch

# So that every tensor of a copy starts where any of its elements may.
_ALIGNMENT = 16
# One is written while another is copied; iterations that are prepared early have a third.
_NUM_PIECES = 3
_LEAST_BYTES = 64 * 2**10


@dataclass(frozen=True, slots=True)
class Step:
    """One iteration's tokens ``[num_tokens]`` int64, and the batch that describes them.

    ``rows`` ``[num_rows]`` int64 are the tokens whose logits are asked for.
    """

    token_ids: Tensor
    batch: RaggedBatch
    rows: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        """All of them, for :meth:`of`."""
        batch = self.batch
        return (
            self.token_ids,
            self.rows,
            batch.positions,
            batch.slots,
            batch.query_start,
            batch.context_lens,
            batch.block_tables,
        )

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> "Step":
        """The inverse of :meth:`tensors`."""
        token_ids, rows, *batch = tensors
        return cls(token_ids, RaggedBatch(*batch), rows)


@dataclass(frozen=True, slots=True)
class PlacedStep:
    """A step whose tensors are views of one run of a device's memory, ``[num_bytes]`` uint8."""

    memory: Tensor
    step: Step

    @classmethod
    def like(cls, step: Step, device: torch.device) -> "PlacedStep":
        """Room for a step of these shapes; what is in it is undefined."""
        tensors = step.tensors()
        memory = torch.empty(_num_bytes(tensors), dtype=torch.uint8, device=device)
        views, offset = [], 0
        for tensor in tensors:
            part = memory[offset : offset + tensor.nbytes]
            views.append(part.view(tensor.dtype).view(tensor.shape))
            offset += _padded(tensor.nbytes)
        return cls(memory, Step.of(views))


class StepInputs(Protocol):
    """Brings iterations' tensors to a device."""

    @property
    def device(self) -> torch.device:
        """Where they go."""
        ...

    def put(self, step: Step) -> Step:
        """The same on the device."""
        ...

    def fill(self, place: PlacedStep, step: Step) -> None:
        """Write a step over one of the same shapes that is on the device."""
        ...


class HostInputs:
    """For a device that reads what the host builds."""

    device = torch.device("cpu")

    def put(self, step: Step) -> Step:
        """The step itself."""
        return step

    def fill(self, place: PlacedStep, step: Step) -> None:
        """See StepInputs."""
        _pack(step.tensors(), place.memory.numpy().data)


class CudaInputs:
    """For a GPU: all tensors of a step go in one copy from pinned memory; nobody waits for it."""

    def __init__(self, device: torch.device, cuda: Cuda) -> None:
        self.device = device
        self._cuda = cuda
        self._ring: PinnedRing | None = None

    def put(self, step: Step) -> Step:
        """See StepInputs."""
        place = PlacedStep.like(step, self.device)
        self.fill(place, step)
        return place.step

    def fill(self, place: PlacedStep, step: Step) -> None:
        """See StepInputs; it comes before what is queued on the current stream after it."""
        num_bytes = len(place.memory)
        if self._ring is None or self._ring.piece_bytes < num_bytes:
            size = max(_LEAST_BYTES, 1 << (num_bytes - 1).bit_length())
            self._ring = PinnedRing(_NUM_PIECES, size, self._cuda)
        tensors = step.tensors()
        self._ring.send(
            place.memory, lambda data: _pack(tensors, data), self._cuda.current_stream()
        )


def _pack(tensors: Sequence[Tensor], target: memoryview) -> None:
    bytes_there, offset = np.frombuffer(target, dtype=np.uint8), 0
    for tensor in tensors:
        values = tensor.contiguous().flatten().view(torch.uint8).numpy()
        bytes_there[offset : offset + len(values)] = values
        offset += _padded(len(values))


def _num_bytes(tensors: Sequence[Tensor]) -> int:
    return sum(_padded(tensor.nbytes) for tensor in tensors)


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
