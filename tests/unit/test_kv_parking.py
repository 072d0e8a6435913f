"""Each rule of moving KV blocks, one at a time."""

import pytest

from fabric.kv.block_pool import BlockPool
from fabric.kv.manager import KVCacheManager
from fabric.kv.prefix import PrefixChain, root_hash
from fabric.kv.table import Residence
from fabric.kv.transfer import Direction, ParkingSpace, Tier, Transfer, TransferResult


def chain(tokens: list[int]) -> PrefixChain:
    return PrefixChain(tokens, 4, root_hash("model", ""))


def manager(
    num_blocks: int = 8,
    host: int = 4,
    disk: int = 0,
    prefix_cache: bool = True,
    debug: bool = False,
) -> KVCacheManager:
    pool = BlockPool.fixed(num_blocks, notes_emptied=debug)
    return KVCacheManager(pool, 4, prefix_cache, ParkingSpace(host, disk))


def add(kv: KVCacheManager, key: int, num_tokens: int, first: int = 0) -> None:
    tokens = chain(list(range(first, first + num_tokens)))
    kv.open(key, tokens, kv.find_cached(tokens, num_tokens))
    assert kv.allocate(key, num_tokens, 0) is not None
    kv.register(key, num_tokens)


def orders(kv: KVCacheManager) -> tuple[Transfer, ...]:
    return kv.take_orders().transfers


def finish(kv: KVCacheManager, *transfers: Transfer, error: str = "") -> list[int | None]:
    waiters = [kv.finish_transfer(TransferResult(t.number, error)) for t in transfers]
    kv.check_invariants()
    return waiters


def parked(kv: KVCacheManager, key: int, num_tokens: int) -> None:
    assert kv.park(key, num_tokens)
    finish(kv, *orders(kv))
    assert kv.residence(key) is Residence.PARKED


def is_empty(kv: KVCacheManager) -> bool:
    kv.check_invariants()
    no_slots = not any(kv.num_parked_blocks(tier) for tier in Tier)
    return no_slots and kv.num_free_blocks == kv.num_blocks and not kv.num_transfers


def test_blocks_stay_held_until_they_are_copied_out():
    kv = manager()
    add(kv, 1, 6)
    assert kv.park(1, 6)
    assert (kv.residence(1), kv.num_free_blocks) == (Residence.COPYING_OUT, 6)
    (out,) = orders(kv)
    assert (out.direction, out.tier) == (Direction.OUT, Tier.HOST)
    assert out.pairs == ((0, 0), (1, 1))
    assert finish(kv, out) == [1]
    assert (kv.residence(1), kv.num_free_blocks) == (Residence.PARKED, 8)
    assert kv.places(1) == (0, (Tier.HOST, Tier.HOST))


def test_blocks_beyond_the_computed_tokens_are_given_back_at_once():
    kv = manager()
    add(kv, 1, 12)
    assert kv.park(1, 5)
    assert kv.num_free_blocks == 6
    assert len(orders(kv)[0].pairs) == 2


def test_a_full_host_falls_through_to_disk_and_then_to_no():
    kv = manager(host=1, disk=1, prefix_cache=False)
    add(kv, 1, 8)
    add(kv, 2, 4)
    assert kv.park(1, 8)
    assert [t.tier for t in orders(kv)] == [Tier.HOST, Tier.DISK]
    assert not kv.park(2, 4)
    assert (kv.residence(2), kv.num_transfers) == (Residence.RESIDENT, 2)
    assert orders(kv) == ()
    kv.check_invariants()


def test_a_sequence_is_parked_only_after_the_last_of_its_transfers():
    kv = manager(host=1, disk=1)
    add(kv, 1, 8)
    kv.park(1, 8)
    first, last = orders(kv)
    finish(kv, last)
    assert kv.residence(1) is Residence.COPYING_OUT
    finish(kv, first)
    assert kv.residence(1) is Residence.PARKED


def test_a_sequence_that_turns_back_forgets_its_transfer():
    kv = manager()
    add(kv, 1, 6)
    kv.park(1, 6)
    (out,) = orders(kv)
    assert kv.resume(1)
    assert kv.residence(1) is Residence.RESIDENT
    assert kv.num_parked_blocks(Tier.HOST) == 2
    assert finish(kv, out) == [None]
    assert kv.num_parked_blocks(Tier.HOST) == 0
    kv.free(1)
    assert is_empty(kv)


def test_a_block_that_is_still_copied_out_is_not_written_to():
    kv = manager()
    add(kv, 1, 6)
    kv.park(1, 6)
    kv.resume(1)
    allocation = kv.allocate(1, 7, 6)
    assert allocation is not None
    assert allocation.replaced_block is not None


def test_a_parked_sequence_cannot_resume_but_is_fetched():
    kv = manager()
    add(kv, 1, 6)
    parked(kv, 1, 6)
    assert not kv.resume(1)
    assert kv.fetch(1, 9, 0)
    assert (kv.residence(1), kv.num_free_blocks) == (Residence.COPYING_IN, 5)
    assert not kv.resume(1)
    transfers = orders(kv)
    assert finish(kv, *transfers) == [1]
    assert kv.residence(1) is Residence.RESIDENT
    assert len(kv.block_ids(1)) == 3
    kv.free(1)
    assert is_empty(kv)


@pytest.mark.parametrize(("num_spare", "fits"), [(1, True), (2, False)])
def test_a_fetch_leaves_spare_blocks_free(num_spare, fits):
    kv = manager(num_blocks=3, prefix_cache=False)
    add(kv, 1, 6)
    parked(kv, 1, 6)
    assert kv.fetch(1, 6, num_spare) is fits
    assert kv.residence(1) is (Residence.COPYING_IN if fits else Residence.PARKED)
    kv.check_invariants()


def test_a_fetch_of_blocks_that_are_still_cached_copies_nothing():
    kv = manager()
    add(kv, 1, 8)
    parked(kv, 1, 8)
    assert kv.fetch(1, 8, 0)
    assert kv.residence(1) is Residence.RESIDENT
    assert orders(kv) == ()
    assert kv.num_parked_blocks(Tier.HOST) == 0


def test_a_slot_with_a_known_prefix_makes_the_next_park_copy_nothing():
    kv = manager()
    add(kv, 1, 8)
    parked(kv, 1, 8)
    kv.fetch(1, 8, 0)
    assert kv.park(1, 8)
    assert kv.residence(1) is Residence.PARKED
    assert orders(kv) == ()
    kv.free(1)
    assert is_empty(kv)


def test_a_shared_block_stays_while_a_resident_sequence_uses_it_and_then_moves_once():
    kv = manager()
    add(kv, 1, 6)
    kv.fork(1, 2, chain(list(range(6))))
    kv.fork(1, 3, chain(list(range(6))))
    assert kv.park(1, 6)
    assert kv.park(2, 6)
    assert (orders(kv), kv.park_idle()) == ((), 0)
    assert kv.residence(1) is kv.residence(2) is Residence.PARKED
    assert kv.places(1) == (2, ())
    kv.free(3)
    assert kv.park_idle() == 2
    assert kv.park_idle() == 0
    moved = orders(kv)
    assert sum(len(t.pairs) for t in moved) == 2
    finish(kv, *moved)
    assert kv.places(1) == kv.places(2) == (0, (Tier.HOST, Tier.HOST))
    assert kv.num_parked_blocks(Tier.HOST) == 2
    assert kv.num_free_blocks == 8
    kv.free(1)
    kv.free(2)
    assert is_empty(kv)


def test_the_last_resident_sharer_moves_the_block_for_all():
    kv = manager()
    add(kv, 1, 6)
    kv.fork(1, 2, chain(list(range(6))))
    assert kv.park(1, 6)
    parked(kv, 2, 6)
    assert kv.places(1) == kv.places(2) == (0, (Tier.HOST, Tier.HOST))


def test_a_sequence_whose_blocks_all_stayed_for_others_resumes():
    kv = manager()
    add(kv, 1, 6)
    kv.fork(1, 2, chain(list(range(6))))
    kv.park(1, 6)
    assert kv.resume(1)
    assert kv.block_ids(1) == kv.block_ids(2)


def test_a_sequence_that_failed_to_leave_resumes_with_all_of_its_blocks():
    kv = manager()
    add(kv, 1, 6)
    kv.park(1, 6)
    assert finish(kv, *orders(kv), error="disk full") == [1]
    assert (kv.residence(1), kv.num_parked_blocks(Tier.HOST)) == (Residence.COPYING_OUT, 0)
    assert kv.resume(1)
    kv.free(1)
    assert is_empty(kv)


def test_a_sequence_that_half_failed_to_leave_is_fetched_back():
    kv = manager(host=1, disk=1, prefix_cache=False)
    add(kv, 1, 8)
    kv.park(1, 8)
    host, disk = orders(kv)
    assert finish(kv, disk, error="short write") == [1]
    finish(kv, host)
    assert not kv.resume(1)
    assert kv.fetch(1, 8, 0)
    assert finish(kv, *orders(kv)) == [1]
    assert kv.residence(1) is Residence.RESIDENT
    kv.free(1)
    assert is_empty(kv)


def test_a_sequence_that_failed_to_come_back_is_freed_and_its_slots_are_not_reused_by_prefix():
    kv = manager(num_blocks=2)
    add(kv, 1, 8)
    parked(kv, 1, 8)
    add(kv, 2, 8, first=50)
    kv.free(2)
    assert kv.fetch(1, 8, 0)
    assert finish(kv, *orders(kv), error="checksum") == [1]
    assert kv.residence(1) is Residence.COPYING_IN
    kv.free(1)
    assert is_empty(kv)
    add(kv, 1, 8)
    assert kv.park(1, 8)
    assert len(orders(kv)[0].pairs) == 2


def test_a_late_completion_does_not_touch_a_sequence_with_a_reused_key():
    kv = manager()
    add(kv, 1, 6)
    kv.park(1, 6)
    (late,) = orders(kv)
    kv.free(1)
    add(kv, 1, 6, first=50)
    kv.park(1, 6)
    (own,) = orders(kv)
    assert finish(kv, late) == [None]
    assert kv.residence(1) is Residence.COPYING_OUT
    assert finish(kv, own) == [1]
    kv.free(1)
    assert is_empty(kv)


def test_nobody_gets_the_blocks_and_slots_of_a_transfer_whose_sequence_is_gone():
    kv = manager(num_blocks=2, host=2, prefix_cache=False)
    add(kv, 1, 8)
    kv.park(1, 8)
    (out,) = orders(kv)
    kv.free(1)
    assert kv.num_free_blocks == 0
    assert kv.num_parked_blocks(Tier.HOST) == 2
    finish(kv, out)
    assert is_empty(kv)


def test_an_abandoned_transfer_keeps_its_blocks_until_it_is_over_after_all():
    kv = manager(num_blocks=2, host=2, prefix_cache=False)
    add(kv, 1, 8)
    parked(kv, 1, 8)
    kv.fetch(1, 8, 0)
    (back,) = orders(kv)
    assert kv.abandon_transfer(back.number) == 1
    assert kv.residence(1) is Residence.COPYING_IN
    kv.free(1)
    assert (kv.num_free_blocks, kv.num_parked_blocks(Tier.HOST)) == (0, 2)
    assert finish(kv, back) == [None]
    assert is_empty(kv)


def test_a_sequence_with_a_copy_on_write_to_come_is_not_parked():
    kv = manager()
    add(kv, 1, 6)
    kv.fork(1, 2, chain(list(range(6))))
    kv.allocate(2, 7, 6)
    assert not kv.park(2, 6)
    kv.take_copies()
    assert kv.park(2, 6)


def test_the_source_of_a_copy_on_write_outlives_the_parked_sequence_that_let_go_of_it():
    kv = manager(debug=True, prefix_cache=False)
    add(kv, 1, 2)
    kv.fork(1, 2, chain([0, 1]))
    kv.park(1, 2)
    kv.allocate(2, 3, 2)
    kv.free(1)
    assert kv.take_orders().poisoned == ()
    ((source, _),) = kv.take_copies()
    assert kv.take_orders().poisoned == (source,)
    kv.check_invariants()


def test_the_source_of_a_copy_on_write_outlives_the_transfer_that_held_it():
    kv = manager(debug=True, prefix_cache=False)
    add(kv, 1, 2)
    kv.park(1, 2)
    (out,) = orders(kv)
    kv.resume(1)
    kv.allocate(1, 3, 2)
    finish(kv, out)
    assert kv.take_orders().poisoned == ()
    ((source, _),) = kv.take_copies()
    assert kv.take_orders().poisoned == (source,)


def test_debug_poisons_blocks_only_once_they_are_copied():
    kv = manager(debug=True, prefix_cache=False)
    add(kv, 1, 6)
    kv.park(1, 6)
    begun = kv.take_orders()
    assert begun.poisoned == ()
    finish(kv, *begun.transfers)
    assert sorted(kv.take_orders().poisoned) == [0, 1]
    assert not kv.take_orders()
