import pytest
import torch

from kernels.ops import Backend, RaggedBatch, ShapeError
from kernels.reference import ReferenceBackend
from tests.kernels.cases import Heads, make_cache, random_tensor, strided_rows

HEADS = Heads(num_heads=6, num_kv_heads=3, head_dim=10)


@pytest.mark.parametrize("block_size", [1, 8, 16])
def test_store_kv_writes_only_its_slots(
    backend: Backend, dtype: torch.dtype, block_size: int
) -> None:
    slots = torch.randperm(7 * block_size, generator=torch.Generator().manual_seed(0))[:5]
    key = strided_rows(random_tensor(0, len(slots), 3, 10, dtype=dtype))
    value = strided_rows(random_tensor(1, len(slots), 3, 10, dtype=dtype))
    actual, expected = (make_cache(7, block_size, HEADS, dtype) for _ in range(2))

    backend.store_kv(key, value, actual, 1, slots)

    ReferenceBackend().store_kv(key, value, expected, 1, slots)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


def test_copy_blocks_between_caches_and_within_one(backend: Backend, dtype: torch.dtype) -> None:
    source = make_cache(6, 8, HEADS, dtype)
    source.copy_(random_tensor(0, *source.shape, dtype=dtype))
    target = make_cache(4, 8, HEADS, dtype)

    backend.copy_blocks(source, target, torch.tensor([[5, 0], [1, 3]]))
    backend.copy_blocks(source, source, torch.tensor([[0, 2], [0, 4]]))

    assert torch.equal(target[[0, 3]], source[[5, 1]])
    assert target[1:3].isnan().all()
    assert torch.equal(source[[2, 4]], source[[0, 0]])


def test_copy_blocks_refuses_blocks_of_another_shape(backend: Backend) -> None:
    source = make_cache(2, 8, HEADS, torch.float32)
    target = make_cache(2, 16, HEADS, torch.float32)
    with pytest.raises(ShapeError, match=r"3, 8, 10.*3, 16, 10"):
        backend.copy_blocks(source, target, torch.tensor([[0, 1]]))


@pytest.mark.parametrize("slot", [-1, 56])
def test_slot_outside_the_cache_is_refused(backend: Backend, slot: int) -> None:
    cache = make_cache(7, 8, HEADS, torch.float32)
    key = random_tensor(0, 1, 3, 10)
    with pytest.raises(IndexError, match=f"slot {slot} is outside 0 to 55"):
        backend.store_kv(key, key, cache, 0, torch.tensor([slot]))


def batch_of(positions: list[int], context_len: int, blocks: list[int]) -> RaggedBatch:
    return RaggedBatch(
        positions=torch.tensor(positions, dtype=torch.int32),
        slots=torch.zeros(len(positions), dtype=torch.int64),
        query_start=torch.tensor([0, len(positions)], dtype=torch.int32),
        context_lens=torch.tensor([context_len], dtype=torch.int32),
        block_tables=torch.tensor([blocks], dtype=torch.int32),
    )


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        (batch_of([8], 9, [0, 7]), IndexError, "block 7 is outside 0 to 6"),
        (batch_of([8], 9, [0]), ValueError, "a context of 9 and room for 8"),
        (batch_of([3], 9, [0, 1]), ValueError, "token 0 is at position 3, not 8"),
        (batch_of([0, 1], 1, [0]), ValueError, "2 new tokens, a context of 1"),
    ],
)
def test_attention_refuses_a_batch_that_does_not_fit(
    backend: Backend, batch: RaggedBatch, error: type[Exception], message: str
) -> None:
    cache = make_cache(7, 8, HEADS, torch.float32)
    query = random_tensor(0, len(batch.positions), 6, 10)
    with pytest.raises(error, match=message):
        backend.paged_attention(query, cache, 0, batch, 1.0)


def test_attention_ignores_table_entries_past_the_context(backend: Backend) -> None:
    cache = make_cache(7, 8, HEADS, torch.float32)
    key = random_tensor(0, 1, 3, 10)
    backend.store_kv(key, key, cache, 0, torch.tensor([16]))
    batch = batch_of([0], 1, [2, 99, -1])
    out = backend.paged_attention(random_tensor(1, 1, 6, 10), cache, 0, batch, 1.0)
    torch.testing.assert_close(out, key.repeat_interleave(2, dim=1))
