import pytest
import torch

from kernels.ops import Backend
from kernels.reference import ReferenceBackend
from tests.kernels.cases import Heads, Sequence, assert_near, attend

REFERENCE = ReferenceBackend()

# (context, new tokens) of each sequence
BATCHES = {
    "one token": [(1, 1)],
    "one decode": [(100, 1)],
    "prompt": [(45, 45)],
    "chunk": [(130, 61)],
    "mixed": [(33, 1), (5, 5), (600, 1), (70, 17), (32, 1), (64, 64)],
}


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("block_size", [8, 16, 32])
def test_attention_equals_the_reference(
    backend: Backend, dtype: torch.dtype, name: str, block_size: int
) -> None:
    check(backend, dtype, name, Heads(6, 2, 64), block_size)


@pytest.mark.parametrize("head_dim", [8, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("group", [1, 3, 4, 8, 40])
def test_attention_equals_the_reference_for_any_heads(
    backend: Backend, dtype: torch.dtype, head_dim: int, group: int
) -> None:
    check(backend, dtype, "chunk", Heads(2 * group, 2, head_dim), block_size=16)


@pytest.mark.parametrize("context", [255, 256, 1025, 8192])
def test_attention_equals_the_reference_over_a_long_context(
    backend: Backend, dtype: torch.dtype, context: int
) -> None:
    heads = Heads(4, 2, 64)
    sequences = [Sequence.random(0, context, heads, dtype, num_new=3)]
    [actual] = attend(backend, sequences, heads, 16)
    [expected] = attend(REFERENCE, sequences, heads, 16)
    assert_near(actual, expected)


def check(backend: Backend, dtype: torch.dtype, name: str, heads: Heads, block_size: int) -> None:
    sequences = [
        Sequence.random(i, length, heads, dtype, num_new)
        for i, (length, num_new) in enumerate(BATCHES[name])
    ]

    actual = attend(backend, sequences, heads, block_size)

    expected = attend(REFERENCE, sequences, heads, block_size)
    for row, want in zip(actual, expected, strict=True):
        assert_near(row, want)


def test_large_scores_do_not_overflow(backend: Backend) -> None:
    heads = Heads(3, 1, 64)
    sequence = Sequence.random(0, 80, heads, torch.float32, num_new=20)
    sequence.query.mul_(300)

    [actual] = attend(backend, [sequence], heads, 16)

    [expected] = attend(REFERENCE, [sequence], heads, 16)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)
