"""An output row is bitwise the same whatever is beside it and however its sequence is cut."""

import pytest
import torch
from torch import Tensor

from kernels.ops import Backend
from tests.kernels.cases import Heads, Sequence, attend, random_tensor

HEADS = Heads(6, 2, 64)
LENGTH = 150


@pytest.mark.parametrize(("in_features", "out_features"), [(64, 70), (577, 40)])
def test_linear_row_does_not_depend_on_the_number_of_rows(
    backend: Backend, dtype: torch.dtype, in_features: int, out_features: int
) -> None:
    x = random_tensor(0, 70, in_features, dtype=dtype)
    weight = backend.pack_linear(random_tensor(1, out_features, in_features, dtype=dtype))
    alone = torch.cat([backend.linear(x[i : i + 1], weight) for i in range(70)])
    for num_rows in range(1, 71):
        assert torch.equal(backend.linear(x[-num_rows:], weight), alone[-num_rows:])


def test_row_does_not_see_nan_in_another_row(backend: Backend, dtype: torch.dtype) -> None:
    x = random_tensor(0, 30, 48, dtype=dtype)
    weight = backend.pack_linear(random_tensor(1, 40, 48, dtype=dtype))
    clean = backend.linear(x, weight)
    x[::2] = float("nan")
    assert torch.equal(backend.linear(x, weight)[1::2], clean[1::2])


def test_row_operations_do_not_depend_on_the_number_of_rows(
    backend: Backend, dtype: torch.dtype
) -> None:
    x = random_tensor(0, 300, 2 * 83, dtype=dtype)
    weight = random_tensor(1, 2 * 83, dtype=dtype)
    for operation in (backend.silu_and_mul, lambda rows: backend.rms_norm(rows, weight, 1e-5)):
        alone = torch.cat([operation(x[i : i + 1]) for i in range(300)])
        assert torch.equal(operation(x), alone)


@pytest.fixture
def sequence(dtype: torch.dtype) -> Sequence:
    return Sequence.random(0, LENGTH, HEADS, dtype, num_new=LENGTH)


@pytest.fixture
def alone(backend: Backend, sequence: Sequence) -> Tensor:
    """Each row computed as a decode of its own."""
    return torch.cat([attend(backend, [cut(sequence, i, i + 1)], HEADS, 16)[0] for i in range(150)])


def cut(sequence: Sequence, start: int, end: int) -> Sequence:
    return Sequence(sequence.query[:end], sequence.key[:end], sequence.value[:end], start)


@pytest.mark.parametrize("chunk", [16, 64, 150])
@pytest.mark.parametrize("block_size", [8, 16, 32, 5])
def test_attention_row_does_not_depend_on_chunk_or_block_size(
    backend: Backend, sequence: Sequence, alone: Tensor, chunk: int, block_size: int
) -> None:
    chunks = [
        attend(backend, [cut(sequence, i, min(i + chunk, LENGTH))], HEADS, block_size)[0]
        for i in range(0, LENGTH, chunk)
    ]
    assert torch.equal(torch.cat(chunks), alone)


def test_attention_row_does_not_depend_on_other_sequences(
    backend: Backend, dtype: torch.dtype, sequence: Sequence, alone: Tensor
) -> None:
    others = [Sequence.random(i, 20 * i, HEADS, dtype, num_new=1 + 7 * i) for i in range(1, 5)]
    batch = [others[0], cut(sequence, 90, 140), others[1], cut(sequence, 0, 33), *others[2:]]

    rows = attend(backend, batch, HEADS, 16)

    assert torch.equal(rows[1], alone[90:140])
    assert torch.equal(rows[3], alone[:33])


@pytest.mark.parametrize("num_finite", [97, 98, 99, 100])
def test_attention_row_does_not_see_later_infinities(
    backend: Backend, sequence: Sequence, alone: Tensor, num_finite: int
) -> None:
    sequence.value[num_finite:] = float("inf")
    sequence.key[num_finite:] = float("nan")
    [rows] = attend(backend, [sequence], HEADS, 16)
    assert torch.equal(rows[:num_finite], alone[:num_finite])


def test_a_long_context_split_over_threads_changes_no_row(backend: Backend) -> None:
    """Alone, a decode's segments are tasks of their own; among many sequences they are not."""
    heads, lengths = Heads(4, 1, 32), (700, 256, 257, 1100)
    sequences = [
        Sequence.random(i, length, heads, torch.bfloat16, num_new=1)
        for i, length in enumerate(lengths)
    ]
    short = [Sequence.random(9 + i, 3, heads, torch.bfloat16, num_new=1) for i in range(20)]
    alone = [attend(backend, [sequence], heads, 16)[0] for sequence in sequences]
    together = attend(backend, [*sequences, *short], heads, 16)
    assert all(map(torch.equal, alone, together))
