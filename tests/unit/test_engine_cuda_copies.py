"""What is given to a GPU's streams around copies, and in which order; no GPU is needed."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import pytest
import torch
from torch import Tensor

from fabric.engine.block_addresses import BlockAddresses
from fabric.engine.block_tier import CopyFailed
from fabric.engine.cuda_copies import CudaBlocks, runs


class FakeCuda:
    """torch.cuda as far as it is used: everything that it is given to do goes into ``log``."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.num_events = 0
        self.num_queries = 0
        self.register_error = 0

    def Event(self) -> "FakeEvent":  # noqa: N802
        self.num_events += 1
        return FakeEvent(self, f"event {self.num_events}")

    def Stream(self) -> "FakeStream":  # noqa: N802
        return FakeStream(self, "copies")

    def current_stream(self) -> "FakeStream":
        return FakeStream(self, "iterations")

    @contextlib.contextmanager
    def stream(self, stream: "FakeStream") -> Iterator[None]:
        self.log.append(f"into {stream.name}")
        yield
        self.log.append("out again")

    def cudart(self) -> "FakeCuda":
        return self

    def cudaHostRegister(self, address: int, num_bytes: int, flags: int) -> int:  # noqa: N802
        self.log.append(f"pin {num_bytes}")
        return self.register_error


@dataclass
class FakeEvent:
    cuda: FakeCuda
    name: str

    def record(self, stream: "FakeStream") -> None:
        self.cuda.log.append(f"{self.name} behind {stream.name}")

    def query(self) -> bool:
        self.cuda.num_queries += 1
        return self.cuda.num_queries > 3


@dataclass
class FakeStream:
    cuda: FakeCuda
    name: str

    def wait_event(self, event: FakeEvent) -> None:
        self.cuda.log.append(f"{self.name} wait for {event.name}")


@dataclass
class FakeMemory:
    """A tensor that notes what is copied into it."""

    cuda: FakeCuda
    name: str
    num_bytes: int = 64

    def __getitem__(self, part: slice) -> "FakeMemory":
        step = "" if part.step is None else f":{part.step}"
        return FakeMemory(self.cuda, f"{self.name}[{part.start}:{part.stop}{step}]")

    def copy_(self, source: "FakeMemory", non_blocking: bool) -> None:
        assert non_blocking
        self.cuda.log.append(f"{source.name} to {self.name}")

    def untyped_storage(self) -> "FakeMemory":
        return self

    def data_ptr(self) -> int:
        return id(self)

    def nbytes(self) -> int:
        return self.num_bytes


PAIRS = [(3, 0), (4, 1), (9, 2), (2, 3)]
# Slabs of 4 blocks in 13 steps, 3 steps a block.
ADDRESSES = BlockAddresses(4, 13, 3)


@pytest.fixture
def cuda() -> FakeCuda:
    return FakeCuda()


@pytest.fixture
def blocks(cuda: FakeCuda) -> CudaBlocks:
    return CudaBlocks(cast(Tensor, FakeMemory(cuda, "device")), cuda, ADDRESSES)


def test_copies_wait_for_the_iterations_before_them_and_are_over_when_an_event_after_them_is(
    cuda: FakeCuda, blocks: CudaBlocks
) -> None:
    slots = cast(Tensor, FakeMemory(cuda, "host"))
    blocks.copy_out(PAIRS, slots, blocks.fence())
    assert cuda.log == [
        "event 1 behind iterations",
        "pin 64",
        "into copies",
        "copies wait for event 1",
        "device[9:12:3] to host[0:1]",
        "device[13:16:3] to host[1:2]",
        "device[29:32:3] to host[2:3]",
        "device[6:9:3] to host[3:4]",
        "event 2 behind copies",
        "out again",
    ]
    assert cuda.num_queries == 4


def test_copies_in_go_the_other_way_and_memory_is_pinned_once(
    cuda: FakeCuda, blocks: CudaBlocks
) -> None:
    slots = cast(Tensor, FakeMemory(cuda, "host"))
    blocks.copy_out(PAIRS, slots, blocks.fence())
    cuda.log.clear()
    blocks.copy_in(PAIRS[:1], slots, blocks.fence())
    assert cuda.log[1:5] == [
        "into copies",
        "copies wait for event 3",
        "host[0:1] to device[9:12:3]",
        "event 4 behind copies",
    ]


def test_memory_that_cannot_be_pinned_fails_the_transfer(
    cuda: FakeCuda, blocks: CudaBlocks
) -> None:
    cuda.register_error = 2
    with pytest.raises(CopyFailed, match="CUDA error 2"):
        blocks.copy_out(PAIRS, cast(Tensor, FakeMemory(cuda, "host")), blocks.fence())


def test_blocks_that_follow_each_other_in_a_slab_are_copied_as_one(
    cuda: FakeCuda, blocks: CudaBlocks
) -> None:
    slots = cast(Tensor, FakeMemory(cuda, "host"))
    blocks.copy_out([(i, i) for i in range(1, 7)], slots, blocks.fence())
    assert [line for line in cuda.log if " to " in line] == [
        "device[3:12:3] to host[1:4]",
        "device[13:22:3] to host[4:7]",
    ]


def test_runs_join_what_follows_on_both_sides() -> None:
    assert runs([]) == []
    assert runs([(1, 1), (2, 2), (3, 4), (4, 5), (6, 6)]) == [(1, 1, 2), (3, 4, 2), (6, 6, 1)]


def test_what_is_used_of_torch_cuda_is_there() -> None:
    for name in ("Event", "Stream", "current_stream", "stream", "cudart"):
        assert callable(getattr(torch.cuda, name))
