"""Iterations' tensors on their way to a GPU, in one copy; no GPU is needed."""

import pytest
import torch
from torch import Tensor

import fabric.engine.step_inputs as step_inputs
from fabric.engine.pinned import PinnedRing
from fabric.engine.step_inputs import CudaInputs, HostInputs, PlacedStep, Step
from kernels.ops import RaggedBatch
from tests.unit.fake_cuda import FakeCuda

CPU = torch.device("cpu")


def host_bytes(num_bytes: int) -> Tensor:
    return torch.zeros(num_bytes, dtype=torch.uint8)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    def ring(num_pieces: int, piece_bytes: int, cuda: FakeCuda) -> PinnedRing:
        return PinnedRing(num_pieces, piece_bytes, cuda, host_bytes)

    monkeypatch.setattr(step_inputs, "PinnedRing", ring)
    return FakeCuda()


def step(num_tokens: int, num_rows: int, num_blocks: int = 5) -> Step:
    batch = RaggedBatch(
        positions=torch.arange(num_tokens, dtype=torch.int32),
        slots=torch.arange(num_tokens) * 7,
        query_start=torch.tensor([0, num_tokens], dtype=torch.int32),
        context_lens=torch.tensor([num_tokens], dtype=torch.int32),
        block_tables=torch.arange(num_blocks, dtype=torch.int32)[None],
    )
    return Step(torch.arange(num_tokens) + 100, batch, torch.arange(num_rows))


def assert_same(actual: Step, expected: Step) -> None:
    for there, here in zip(actual.tensors(), expected.tensors(), strict=True):
        assert there.dtype is here.dtype
        assert torch.equal(there, here)


@pytest.mark.parametrize(("num_tokens", "num_rows"), [(1, 1), (3, 0), (513, 1), (20000, 1)])
def test_all_tensors_arrive(cuda: FakeCuda, num_tokens: int, num_rows: int) -> None:
    inputs = CudaInputs(CPU, cuda)
    for _ in range(5):
        wanted = step(num_tokens, num_rows)
        assert_same(inputs.put(wanted), wanted)


def test_they_go_in_one_copy_that_nobody_waits_for(cuda: FakeCuda) -> None:
    CudaInputs(CPU, cuda).put(step(3, 1))
    assert cuda.log == ["into iterations", "event 1 behind iterations", "out again"]


def test_pinned_memory_is_written_again_only_when_its_copy_is_over(cuda: FakeCuda) -> None:
    inputs = CudaInputs(CPU, cuda)
    for _ in range(4):
        inputs.put(step(3, 1))
    assert [line for line in cuda.log if "host" in line] == ["host waits for event 1"]


def test_a_longer_iteration_gets_longer_pieces(cuda: FakeCuda) -> None:
    inputs = CudaInputs(CPU, cuda)
    for num_blocks in (5, 100_000, 5):
        wanted = step(2, 1, num_blocks)
        assert_same(inputs.put(wanted), wanted)


@pytest.mark.parametrize("kind", ["host", "cuda"])
def test_a_place_is_filled_again_where_it_is(cuda: FakeCuda, kind: str) -> None:
    inputs = HostInputs() if kind == "host" else CudaInputs(CPU, cuda)
    place = PlacedStep.like(step(4, 2), CPU)
    for shift in range(3):
        wanted = step(4, 2)
        wanted.token_ids.add_(shift)
        inputs.fill(place, wanted)
        assert_same(place.step, wanted)
