"""How weights are written to a GPU, and what iterations wait for; no GPU is needed."""

import pytest
import torch
from torch import Tensor

from fabric.engine.device_weights import PIECE_BYTES, CpuWeights, CudaWeights
from fabric.engine.pinned import PinnedRing
from tests.unit.fake_cuda import FakeCuda

CPU = torch.device("cpu")


def host_bytes(num_bytes: int) -> Tensor:
    return torch.zeros(num_bytes, dtype=torch.uint8)


@pytest.fixture
def cuda() -> FakeCuda:
    return FakeCuda()


@pytest.fixture
def weights(cuda: FakeCuda) -> CudaWeights:
    return CudaWeights(1000, CPU, cuda, host_bytes)


def test_copies_come_after_the_iterations_that_used_the_memory(
    cuda: FakeCuda, weights: CudaWeights
) -> None:
    assert cuda.log == ["event 1 behind iterations", "copies wait for event 1"]


def test_iterations_wait_for_the_copies_before_and_no_others(
    cuda: FakeCuda, weights: CudaWeights
) -> None:
    weights.write(0, memoryview(b"abc"))
    cuda.log.clear()
    wait = weights.arrived()
    weights.write(3, memoryview(b"def"))
    wait()
    assert cuda.log[0] == "event 3 behind copies"
    assert cuda.log[-1] == "iterations wait for event 3"
    assert bytes(weights.tensor[:6].tolist()) == b"abcdef"


def test_a_reader_fills_memory_that_is_then_copied(weights: CudaWeights) -> None:
    def read(target: memoryview) -> None:
        target[:] = bytes(range(len(target)))

    weights.fill(10, 15, read)
    assert weights.tensor[10:15].tolist() == [0, 1, 2, 3, 4]


def test_loading_ends_when_the_stream_has_no_more_copies(
    cuda: FakeCuda, weights: CudaWeights
) -> None:
    weights.write(0, memoryview(b"abc"))
    weights.settle()
    assert cuda.log[-1] == "host waits for copies"


def test_memory_goes_back_at_once(cuda: FakeCuda, weights: CudaWeights) -> None:
    weights.free()
    assert weights.tensor.nbytes == 0
    assert cuda.log[-1] == "empty cache"


def test_a_piece_of_pinned_memory_waits_for_the_copy_it_was_last_in(cuda: FakeCuda) -> None:
    ring = PinnedRing(2, 8, cuda, host_bytes)
    target, stream = torch.zeros(24, dtype=torch.uint8), cuda.Stream()
    for i in range(3):
        ring.send(
            target[8 * i : 8 * i + 8],
            lambda data, value=i: data.__setitem__(slice(0, 8), bytes([value] * 8)),
            stream,
        )
    assert [line for line in cuda.log if "host" in line] == ["host waits for event 1"]
    assert target.tolist() == [0] * 8 + [1] * 8 + [2] * 8


def test_host_memory_is_there_as_soon_as_it_is_written() -> None:
    weights = CpuWeights(PIECE_BYTES)
    weights.write(2, memoryview(b"abc"))
    weights.arrived()()
    assert bytes(weights.tensor[2:5].tolist()) == b"abc"
