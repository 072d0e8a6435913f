"""Slabs between models: each rule by itself, then all of them under random traces."""

import pytest

from fabric.kv.block_pool import BlockPool
from fabric.kv.slabs import SlabPool
from tests.unit.kv_slab_world import NUM_SLABS, SlabWorld

SEEDS = range(5)
NUM_STEPS = 800


def pools(num_slabs: int, *blocks_per_slab: int) -> tuple[SlabPool, list[BlockPool]]:
    slabs = SlabPool(num_slabs)
    return slabs, [BlockPool(slabs, number, notes_emptied=True) for number in blocks_per_slab]


def cache(pool: BlockPool, *names: bytes) -> list[int]:
    """Blocks that are free again and hold prefixes."""
    blocks = [pool.take() for _ in names]
    for block, name in zip(blocks, names, strict=True):
        pool.register(block, name)
    for block in blocks:
        pool.release(block)
    return blocks


def test_blocks_lie_in_the_slab_that_their_number_divides_to():
    slabs, (a, b) = pools(3, 2, 3)
    assert [a.take(), b.take(), a.take(), b.take()] == [0, 3, 1, 4]
    assert a.take() == 4
    assert (a.account.num_slabs, b.account.num_slabs, slabs.num_free) == (2, 1, 0)


def test_a_slab_goes_back_with_its_last_block():
    slabs, (pool,) = pools(2, 2)
    blocks = [pool.take() for _ in range(3)]
    pool.release(blocks[2])
    assert (slabs.num_free, pool.num_free) == (1, 2)
    pool.release(blocks[0])
    assert slabs.num_free == 1
    pool.release(blocks[1])
    assert (slabs.num_free, pool.num_free) == (2, 4)


def test_blocks_of_the_slab_that_was_opened_first_are_taken_first():
    _, (pool,) = pools(3, 2)
    blocks = [pool.take() for _ in range(6)]
    for block in (blocks[4], blocks[2], blocks[1]):
        pool.release(block)
    assert [pool.take() for _ in range(3)] == [blocks[1], blocks[2], blocks[4]]


def test_a_free_slab_is_borrowed_before_a_prefix_is_evicted():
    slabs, (pool, _) = pools(2, 1, 1)
    (cached,) = cache(pool, b"a")
    assert pool.take() != cached
    assert slabs.num_free == 0
    assert pool.take() == cached


def test_an_own_prefix_is_evicted_before_one_of_another_model():
    _, (a, b) = pools(2, 1, 1)
    (own,), _ = cache(a, b"a"), cache(b, b"b")
    assert a.take() == own
    assert b.find(b"b") is not None
    a.take()
    assert b.find(b"b") is None


def test_the_idle_slab_that_was_used_least_recently_is_reclaimed_first():
    _, (a, b) = pools(3, 1, 1)
    blocks = cache(a, b"1", b"2", b"3")
    a.share(blocks[0])
    a.release(blocks[0])
    assert [b.take(), b.take(), b.take()] == [blocks[1], blocks[2], blocks[0]]


def test_whoever_has_most_idle_slabs_gives_one_up():
    _, (a, b, c) = pools(3, 1, 1, 1)
    cache(a, b"1")
    cache(b, b"2", b"3")
    c.take()
    assert (a.account.num_idle, b.account.num_idle) == (1, 1)
    c.take()
    assert (a.account.num_idle, b.account.num_idle) == (0, 1)


def test_what_a_reclaimed_slab_held_is_noted_as_emptied():
    _, (a, b) = pools(1, 2, 1)
    blocks = cache(a, b"1", b"2")
    assert a.emptied == []
    b.take()
    assert a.emptied is not None
    assert sorted(a.emptied) == blocks


def test_nobody_borrows_what_another_model_is_guaranteed():
    _, (a, b) = pools(4, 1, 1)
    b.account.set_bounds(3, 4)
    assert (a.num_free, b.num_free) == (1, 4)
    a.take()
    assert (a.num_free, b.num_free) == (0, 3)


def test_a_guarantee_that_grows_while_others_use_the_memory_gets_what_they_free():
    _, (a, b, c) = pools(3, 1, 1, 1)
    blocks = [a.take() for _ in range(3)]
    b.account.set_bounds(2, 3)
    assert (b.num_free, c.num_free) == (0, 0)
    a.release(blocks[0])
    assert (a.num_free, b.num_free, c.num_free) == (0, 1, 0)


def test_a_prefix_in_a_slab_that_a_guarantee_needs_is_not_used_again():
    slabs, (a, b) = pools(2, 2, 1)
    cache(a, b"1", b"2", b"3")
    b.account.set_bounds(1, 2)
    assert (a.account.num_owed, a.num_free) == (1, 2)
    assert a.find(b"1") is None
    kept = a.find(b"3")
    assert kept is not None
    a.share(kept)
    assert (slabs.num_free, a.num_free, b.num_free) == (1, 1, 1)


def test_nobody_gets_more_than_its_maximum():
    slabs, (a, _) = pools(4, 2, 1)
    a.account.set_bounds(0, 2)
    assert (a.num_blocks, a.num_free) == (4, 4)
    for _ in range(4):
        a.take()
    assert (a.num_free, slabs.num_free) == (0, 2)
    with pytest.raises(AssertionError):
        a.take()


def test_weights_take_idle_slabs_but_no_used_or_guaranteed_ones():
    slabs, (a, b) = pools(5, 1, 1)
    cache(a, b"1", b"2")
    a.take()
    b.account.set_bounds(1, 5)
    assert slabs.num_chargeable == 3
    with pytest.raises(AssertionError):
        slabs.charge(4)
    slabs.charge(3)
    assert (a.account.num_slabs, a.num_cached, a.num_free, b.num_free) == (2, 1, 0, 1)
    slabs.discharge(3)
    assert (slabs.num_free, a.num_free) == (3, 3)


def test_weights_have_only_as_many_slabs_punched_as_they_must():
    slabs, (pool,) = pools(4, 1)
    blocks = [pool.take() for _ in range(3)]
    for block in blocks:
        pool.release(block)
    slabs.charge(1)
    assert slabs.take_punched() == ()
    slabs.charge(2)
    assert slabs.take_punched() == (0, 1)
    assert slabs.take_punched() == ()
    assert pool.take() == 2


def test_slabs_whose_memory_is_there_are_lent_before_fresh_ones():
    slabs, (pool,) = pools(4, 1)
    taken = [pool.take() for _ in range(2)]
    pool.release(taken[1])
    pool.release(taken[0])
    assert [pool.take() for _ in range(4)] == [0, 1, 2, 3]
    assert slabs.num_free == 0


def test_a_slab_cannot_be_returned_by_whoever_does_not_have_it():
    _, (a, b) = pools(2, 1, 1)
    with pytest.raises(AssertionError, match="isn't lent"):
        b.account.give_back(a.take())


@pytest.mark.parametrize("seed", SEEDS)
def test_random_traces_break_no_rule(seed):
    world = SlabWorld(seed)
    for _ in range(NUM_STEPS):
        world.step()
    world.end_all()
    world.check()
    assert world.slabs.num_free == NUM_SLABS


@pytest.mark.parametrize("seed", SEEDS)
def test_take_succeeds_exactly_as_often_as_num_free_says(seed):
    world = SlabWorld(seed)
    for number in range(NUM_STEPS):
        world.step()
        if number % 15 == 0:
            take_all(world.copy(), number % len(world.pools))


def take_all(world: SlabWorld, model: int) -> None:
    pool = world.pools[model]
    for left in reversed(range(pool.num_free)):
        world.take(model)
        assert pool.num_free == left
    world.check()
    with pytest.raises(AssertionError):
        pool.take()


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_promised_can_be_had_at_once_by_all(seed):
    world = SlabWorld(seed)
    num_tried = 0
    for number in range(NUM_STEPS):
        world.step()
        if number % 5 == 0 and world.slabs.slack >= 0:
            num_tried += have_guarantees(world.copy())
    assert num_tried > 10


def have_guarantees(world: SlabWorld) -> int:
    """Charge all that can be, then have every model take its guarantee in full."""
    world.slabs.charge(world.slabs.num_chargeable)
    num_promised = sum(pool.account.num_unmet for pool in world.pools)
    for model, pool in enumerate(world.pools):
        while pool.account.num_unmet:
            world.take(model)
            world.check()
        assert pool.account.num_slabs >= world.leasts[model]
    return num_promised


def test_the_same_calls_give_the_same_ids():
    logs = []
    for _ in range(2):
        world = SlabWorld(99)
        for _ in range(2 * NUM_STEPS):
            world.step()
        logs.append(world.log)
    assert logs[0] == logs[1]
    assert len(logs[0]) > NUM_STEPS // 2
