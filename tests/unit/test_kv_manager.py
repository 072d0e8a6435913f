from itertools import count

from fabric.kv.block_pool import BlockPool
from fabric.kv.manager import Allocation, KVCacheManager
from fabric.kv.prefix import PrefixChain, root_hash
from fabric.kv.slabs import SlabPool
from fabric.kv.transfer import ParkingSpace


def chain(tokens: list[int], salt: str = "") -> PrefixChain:
    return PrefixChain(tokens, 4, root_hash("model", salt))


def opened(num_blocks: int, num_tokens: int) -> KVCacheManager:
    kv = KVCacheManager(BlockPool.fixed(num_blocks), 4)
    kv.open(1, chain(list(range(num_tokens))), [])
    assert kv.allocate(1, num_tokens, 0) is not None
    kv.register(1, num_tokens)
    return kv


def test_a_block_is_taken_only_when_the_last_one_is_full():
    kv = opened(8, 6)
    assert kv.block_ids(1) == (0, 1)
    assert kv.allocate(1, 8, 7) == Allocation()
    assert kv.allocate(1, 9, 8) == Allocation((2,))


def test_an_allocation_that_does_not_fit_changes_nothing():
    kv = opened(3, 6)
    assert kv.allocate(1, 17, 6) is None
    assert kv.block_ids(1) == (0, 1)
    assert kv.num_free_blocks == 1
    kv.check_invariants()


def test_a_fork_shares_all_blocks():
    kv = opened(8, 6)
    kv.fork(1, 2, chain(list(range(6))))
    assert kv.block_ids(2) == kv.block_ids(1)
    assert kv.num_free_blocks == 6
    kv.free(1)
    assert kv.num_free_blocks == 6
    kv.free(2)
    assert kv.num_free_blocks == 8
    kv.check_invariants()


def test_only_the_first_writer_to_a_shared_block_copies_it():
    kv = opened(8, 6)
    kv.fork(1, 2, chain(list(range(6))))
    assert kv.allocate(2, 7, 6) == Allocation(replaced_block=(1, 2))
    assert kv.allocate(1, 7, 6) == Allocation()
    assert kv.take_copies() == ((1, 2),)
    assert kv.take_copies() == ()
    assert kv.block_ids(1) == (0, 1)
    assert kv.block_ids(2) == (0, 2)


def test_a_fork_at_a_block_boundary_copies_nothing():
    kv = opened(8, 8)
    kv.fork(1, 2, chain(list(range(8))))
    assert kv.allocate(2, 9, 8) == Allocation((2,))
    assert kv.take_copies() == ()


def test_the_copy_of_a_freed_table_is_not_made():
    kv = opened(8, 6)
    kv.fork(1, 2, chain(list(range(6))))
    kv.allocate(2, 7, 6)
    kv.free(2)
    assert kv.take_copies() == ()
    kv.check_invariants()


def test_the_source_of_a_copy_is_not_given_away_before_the_copy():
    kv = opened(3, 2)
    kv.fork(1, 2, chain([0, 1]))
    assert kv.allocate(2, 3, 2) == Allocation(replaced_block=(0, 1))
    kv.free(1)
    assert kv.num_free_blocks == 1
    kv.check_invariants()
    assert kv.take_copies() == ((0, 1),)
    assert kv.num_free_blocks == 2


def test_a_prefix_is_found_only_once_its_blocks_are_computed():
    kv = KVCacheManager(BlockPool.fixed(8), 4)
    prompt = list(range(9))
    kv.open(1, chain(prompt), [])
    kv.allocate(1, 9, 0)
    assert kv.find_cached(chain(prompt), 9) == []
    kv.register(1, 5)
    assert kv.find_cached(chain(prompt), 9) == [0]
    kv.register(1, 9)
    assert kv.find_cached(chain(prompt), 9) == [0, 1]


def test_the_last_full_block_of_a_prompt_is_computed_again():
    kv = opened(8, 8)
    assert kv.find_cached(chain(list(range(8))), 8) == [0]


def test_another_salt_finds_nothing():
    kv = opened(8, 9)
    assert kv.find_cached(chain(list(range(9)), "salt"), 9) == []


def test_nothing_is_cached_without_a_prefix_cache():
    kv = KVCacheManager(BlockPool.fixed(8), 4, prefix_cache=False)
    kv.open(1, chain(list(range(9))), [])
    kv.allocate(1, 9, 0)
    kv.register(1, 9)
    assert kv.find_cached(chain(list(range(9))), 9) == []
    assert kv.num_cached_blocks == 0


def test_admission_counts_cached_blocks_that_nobody_uses_as_taken():
    kv = opened(4, 9)
    cached = kv.find_cached(chain(list(range(9))), 9)
    assert kv.can_admit(9, cached, 0)
    assert not kv.can_admit(9, cached, 1)
    kv.free(1)
    assert kv.can_admit(16, cached, 0)
    assert not kv.can_admit(17, cached, 0)


def test_the_end_of_a_freed_prefix_is_evicted_before_its_start():
    kv = opened(3, 12)
    kv.free(1)
    kv.open(2, chain([99]), [])
    kv.allocate(2, 1, 0)
    assert kv.find_cached(chain(list(range(12))), 12) == [0, 1]


def two_models() -> list[KVCacheManager]:
    slabs, numbers = SlabPool(4), count(1)
    return [
        KVCacheManager(BlockPool(slabs, n), 4, space=ParkingSpace(4), numbers=numbers)
        for n in (2, 3)
    ]


def fill(kv: KVCacheManager, num_tokens: int) -> None:
    kv.open(1, chain(list(range(num_tokens))), [])
    assert kv.allocate(1, num_tokens, 0) is not None
    kv.register(1, num_tokens)


def test_blocks_that_one_model_uses_are_no_longer_free_for_another():
    first, second = two_models()
    assert (first.num_free_blocks, second.num_free_blocks) == (8, 12)
    fill(first, 9)
    assert (first.num_free_blocks, second.num_free_blocks) == (5, 6)
    assert (first.num_blocks, second.num_blocks) == (8, 12)
    assert (first.account.num_slabs, second.account.num_slabs) == (2, 0)


def test_a_prefix_is_cached_until_another_model_needs_its_slab():
    first, second = two_models()
    fill(first, 9)
    first.free(1)
    assert first.account.num_idle == 1
    fill(second, 36)
    assert first.find_cached(chain(list(range(9))), 9) == [0, 1]
    second.allocate(1, 48, 36)
    assert first.find_cached(chain(list(range(9))), 9) == []
    second.free(1)
    for kv in (first, second):
        kv.check_invariants()


def test_fragmentation_is_what_no_block_covers_that_is_in_use_or_cached():
    kv, _ = two_models()
    fill(kv, 9)
    assert kv.fragmented_bytes(40, 100) == 200 - 3 * 40
    kv.free(1)
    assert kv.fragmented_bytes(40, 100) == 100 - 2 * 40


def test_no_two_transfers_of_a_group_have_the_same_number():
    managers = two_models()
    for kv in managers:
        fill(kv, 9)
        assert kv.park(1, 9)
    orders = [kv.take_orders() for kv in managers]
    assert [transfer.number for order in orders for transfer in order.transfers] == [1, 2]
