import pytest

from fabric.kv.block_pool import BlockPool


def test_blocks_without_a_hash_are_taken_before_cached_ones():
    pool = BlockPool.fixed(3)
    cached, plain = pool.take(), pool.take()
    pool.register(cached, b"prefix")
    pool.release(cached)
    pool.release(plain)
    assert {pool.take(), pool.take()} == {plain, 2}
    assert pool.find(b"prefix") == cached
    assert pool.take() == cached
    assert pool.find(b"prefix") is None


def test_the_least_recently_used_cached_block_is_evicted_first():
    pool = BlockPool.fixed(3)
    for name in (b"a", b"b", b"c"):
        pool.register(pool.take(), name)
    for block in (1, 0, 2):
        pool.release(block)
    pool.share(1)
    pool.release(1)
    assert [pool.take() for _ in range(3)] == [0, 2, 1]


def test_a_shared_block_is_free_only_after_its_last_user():
    pool = BlockPool.fixed(1)
    block = pool.take()
    pool.share(block)
    pool.release(block)
    assert pool.num_free == 0
    pool.release(block)
    assert pool.num_free == 1


def test_a_free_cached_block_can_be_shared_again():
    pool = BlockPool.fixed(2)
    block = pool.take()
    pool.register(block, b"prefix")
    pool.release(block)
    pool.share(block)
    assert pool.refcount(block) == 1
    assert pool.num_free == 1
    pool.check_invariants()


def test_the_first_block_of_a_prefix_stays_the_cached_one():
    pool = BlockPool.fixed(2)
    first, second = pool.take(), pool.take()
    pool.register(first, b"prefix")
    pool.register(second, b"prefix")
    assert pool.find(b"prefix") == first
    assert pool.num_cached == 1
    pool.release(second)
    pool.check_invariants()


def test_a_double_release_is_caught():
    pool = BlockPool.fixed(1)
    pool.release(pool.take())
    with pytest.raises(AssertionError, match="released more often"):
        pool.release(0)


def test_a_block_is_noted_as_emptied_when_nothing_can_find_its_content():
    pool = BlockPool.fixed(2, notes_emptied=True)
    plain, cached = pool.take(), pool.take()
    pool.register(cached, b"prefix")
    pool.release(plain)
    pool.release(cached)
    assert pool.emptied == [plain]
    pool.take()
    assert pool.take() == cached
    assert pool.emptied == [plain, cached]


def test_a_forgotten_block_is_free_but_not_found():
    pool = BlockPool.fixed(2)
    block = pool.take()
    pool.register(block, b"prefix")
    pool.release(block)
    pool.forget(block)
    pool.forget(block)
    assert (pool.find(b"prefix"), pool.num_free) == (None, 2)
    pool.check_invariants()
