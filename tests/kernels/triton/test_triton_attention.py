import pytest
import torch
from torch import Tensor

from kernels.ops import Backend, RaggedBatch
from kernels.reference import ReferenceBackend
from tests.kernels.cases import Heads, Sequence, assert_near, attend, make_cache, random_tensor
from tests.kernels.test_attention import check

LENGTH = 290
HEADS = Heads(6, 2, 64)


@pytest.mark.parametrize(
    ("name", "heads", "block_size"),
    [
        ("one token", Heads(6, 2, 64), 16),
        ("one decode", Heads(4, 4, 80), 8),
        ("prompt", Heads(4, 1, 96), 32),
        ("chunk", Heads(8, 1, 128), 16),
        ("chunk", Heads(6, 2, 64), 5),
        ("one decode", Heads(8, 1, 256), 8),
        ("one decode", Heads(40, 1, 8), 32),
    ],
)
def test_attention_equals_the_reference(
    backend: Backend, dtype: torch.dtype, name: str, heads: Heads, block_size: int
) -> None:
    check(backend, dtype, name, heads, block_size)


def test_mixed_batch_equals_the_reference(backend: Backend, dtype: torch.dtype) -> None:
    check(backend, dtype, "mixed", Heads(3, 1, 64), 16)


def test_large_scores_do_not_overflow(backend: Backend) -> None:
    heads = Heads(3, 1, 64)
    sequence = Sequence.random(0, 80, heads, torch.float32, num_new=20)
    sequence.query.mul_(300)
    [actual] = attend(backend, [sequence], heads, 16)
    [expected] = attend(ReferenceBackend(), [sequence], heads, 16)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


def cut(sequence: Sequence, start: int, end: int) -> Sequence:
    return Sequence(sequence.query[:end], sequence.key[:end], sequence.value[:end], start)


def alone(backend: Backend, sequence: Sequence, position: int) -> Tensor:
    """A token's row computed as a decode of its own."""
    [row] = attend(backend, [cut(sequence, position, position + 1)], HEADS, 16)
    return row


# The first split, at the edges of a tile and of a split, and the last of three splits.
POSITIONS = (31, 128, 289)


@pytest.mark.parametrize(("chunk", "block_size"), [(290, 16), (150, 5)])
def test_row_does_not_depend_on_chunk_or_block_size(
    backend: Backend, dtype: torch.dtype, chunk: int, block_size: int
) -> None:
    sequence = Sequence.random(0, LENGTH, HEADS, dtype, num_new=LENGTH)
    chunks = [
        attend(backend, [cut(sequence, i, min(i + chunk, LENGTH))], HEADS, block_size)[0]
        for i in range(0, LENGTH, chunk)
    ]
    rows = torch.cat(chunks)
    for position in POSITIONS:
        assert torch.equal(rows[position : position + 1], alone(backend, sequence, position))


def test_row_does_not_depend_on_other_sequences(backend: Backend, dtype: torch.dtype) -> None:
    sequence = Sequence.random(0, LENGTH, HEADS, dtype, num_new=LENGTH)
    others = [Sequence.random(i, 20 * i, HEADS, dtype, num_new=1 + 7 * i) for i in range(1, 3)]
    batch = [others[0], cut(sequence, 250, 257), others[1], cut(sequence, 289, 290)]
    rows = attend(backend, batch, HEADS, 16)
    assert torch.equal(rows[1][-1:], alone(backend, sequence, 256))
    assert torch.equal(rows[3], alone(backend, sequence, 289))


def test_row_does_not_depend_on_what_lies_after_its_context(
    backend: Backend, dtype: torch.dtype
) -> None:
    sequence = Sequence.random(0, 40, HEADS, dtype, num_new=1)
    [expected] = attend(backend, [sequence], HEADS, 64)
    longer = Sequence.random(1, 60, HEADS, dtype, num_new=60)
    [row, _] = attend(backend, [sequence, longer], HEADS, 64)
    assert torch.equal(row, expected)


def padded_batch(num_blocks: int) -> RaggedBatch:
    """A decode of 3 tokens, one without any context, and one whose table leads out of the cache."""
    int32 = torch.int32
    return RaggedBatch(
        positions=torch.tensor([2, 0, 0], dtype=int32),
        slots=torch.tensor([2, -1, num_blocks * 8], dtype=torch.int64),
        query_start=torch.arange(4, dtype=int32),
        context_lens=torch.tensor([3, 0, 1], dtype=int32),
        block_tables=torch.tensor([[0], [0], [num_blocks]], dtype=int32),
    )


def test_padding_gives_zeros_and_touches_nothing(backend: Backend, dtype: torch.dtype) -> None:
    unchecked = type(backend)(backend.device, checks_contents=False)
    cache = make_cache(2, 8, HEADS, dtype)
    cache[0] = 1
    before = cache.clone()
    key = random_tensor(1, 3, 2, 64, dtype=dtype)
    batch = padded_batch(len(cache))
    unchecked.store_kv(key, key, cache, 1, batch.slots)
    before[0, 1, :, :, 2] = key[0]
    torch.testing.assert_close(cache, before, rtol=0, atol=0, equal_nan=True)
    out = unchecked.paged_attention(random_tensor(2, 3, 6, 64, dtype=dtype), cache, 1, batch, 0.1)
    assert out[0].isfinite().all()
    assert (out[1:] == 0).all()


@pytest.mark.gpu
@pytest.mark.parametrize("block_size", [8, 16, 32])
@pytest.mark.parametrize("heads", [Heads(32, 8, 128), Heads(32, 4, 64), Heads(8, 8, 256)])
def test_long_contexts_equal_the_reference(
    backend: Backend, dtype: torch.dtype, heads: Heads, block_size: int
) -> None:
    lengths = [(8192, 1), (8192, 300), (1, 1), (4097, 1), (2000, 2000)]
    sequences = [
        Sequence.random(i, *case, num_new=new)
        for i, (*case, new) in enumerate((length, heads, dtype, new) for length, new in lengths)
    ]
    actual = attend(backend, sequences, heads, block_size)
    expected = attend(ReferenceBackend(), sequences, heads, block_size)
    for row, want in zip(actual, expected, strict=True):
        assert_near(row, want)
