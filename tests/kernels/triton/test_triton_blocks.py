import pytest
import torch

from kernels.ops import Backend, ShapeError
from kernels.triton.blocks import gather_blocks, scatter_blocks
from tests.kernels.cases import Heads, make_cache, random_tensor

HEADS = Heads(num_heads=6, num_kv_heads=3, head_dim=10)


def test_copy_blocks_between_caches_and_within_one(backend: Backend, dtype: torch.dtype) -> None:
    source = make_cache(6, 8, HEADS, dtype)
    source.copy_(random_tensor(0, *source.shape, dtype=dtype))
    target = make_cache(4, 8, HEADS, dtype)

    backend.copy_blocks(source, target, torch.tensor([[5, 0], [1, 3]], device="cpu"))
    backend.copy_blocks(source, source, torch.tensor([[0, 2], [0, 4]], device="cpu"))

    assert torch.equal(target[[0, 3]], source[[5, 1]])
    assert target[1:3].isnan().all()
    assert torch.equal(source[[2, 4]], source[[0, 0]])


def test_gathered_blocks_scatter_to_other_places(dtype: torch.dtype) -> None:
    cache = make_cache(7, 16, HEADS, dtype)
    cache.copy_(random_tensor(0, *cache.shape, dtype=dtype))
    staging = torch.full((3, *cache.shape[1:]), float("nan"), dtype=dtype)

    gather_blocks(cache, torch.tensor([6, 0]), staging)
    other = make_cache(4, 16, HEADS, dtype)
    scatter_blocks(staging, torch.tensor([3, 1]), other)

    assert torch.equal(staging[:2], cache[[6, 0]])
    assert staging[2].isnan().all()
    assert torch.equal(other[[3, 1]], cache[[6, 0]])
    assert other[[0, 2]].isnan().all()


def test_blocks_outside_the_cache_are_skipped() -> None:
    cache = make_cache(2, 8, HEADS, torch.float32)
    staging = torch.ones((3, *cache.shape[1:]))
    scatter_blocks(staging, torch.tensor([-1, 2, 1]), cache)
    assert cache[0].isnan().all()
    assert (cache[1] == 1).all()


def test_pairs_outside_the_caches_are_refused(backend: Backend) -> None:
    cache = make_cache(2, 8, HEADS, torch.float32)
    with pytest.raises(IndexError, match=r"\(0, 2\)"):
        backend.copy_blocks(cache, cache, torch.tensor([[0, 2]]))


def test_too_little_staging_is_refused() -> None:
    cache = make_cache(2, 8, HEADS, torch.float32)
    with pytest.raises(ShapeError, match="2 blocks"):
        gather_blocks(cache, torch.tensor([0, 1]), torch.ones((1, *cache.shape[1:])))


@pytest.mark.gpu
def test_blocks_cross_to_the_host_and_back(backend: Backend, dtype: torch.dtype) -> None:
    cache = make_cache(7, 16, HEADS, dtype)
    cache.copy_(random_tensor(0, *cache.shape, dtype=dtype))
    host = torch.empty((5, *cache.shape[1:]), dtype=dtype, device="cpu").pin_memory()
    backend.copy_blocks(cache, host, torch.tensor([[6, 0], [2, 4]], device="cpu"))
    backend.copy_blocks(host, cache, torch.tensor([[0, 1], [4, 3]], device="cpu"))
    assert torch.equal(cache[[1, 3]], cache[[6, 2]])
