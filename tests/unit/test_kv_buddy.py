from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.kv.buddy import BlockRun, BuddyAllocator


def test_a_run_is_the_lowest_of_the_smallest_that_fit():
    buddy = BuddyAllocator(16)
    assert buddy.take(3) == BlockRun(0, 4)
    assert buddy.take(1) == BlockRun(4, 1)
    assert buddy.take(2) == BlockRun(6, 2)
    assert buddy.take(8) == BlockRun(8, 8)
    assert buddy.num_free == 1
    assert buddy.take(2) is None


def test_scattered_free_blocks_make_no_run():
    buddy = BuddyAllocator(4)
    runs = [buddy.take(1) for _ in range(4)]
    for run in runs[::2]:
        buddy.release(run)
    assert buddy.num_free == 2
    assert not buddy.can_take(2)


def test_a_pool_of_any_size_is_a_row_of_runs():
    buddy = BuddyAllocator(13)
    assert buddy.largest_run == 8
    assert [buddy.take(size) for size in (8, 4, 1)] == [
        BlockRun(0, 8),
        BlockRun(8, 4),
        BlockRun(12, 1),
    ]
    assert BuddyAllocator(13).take(9) is None


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 100), st.lists(st.integers(-20, 40), max_size=60))
def test_runs_never_overlap_and_all_blocks_come_together_again(num_blocks, operations):
    buddy, runs = BuddyAllocator(num_blocks), []
    for operation in operations:
        if operation <= 0:
            if runs:
                buddy.release(runs.pop(-operation % len(runs)))
        else:
            fits = buddy.can_take(operation)
            run = buddy.take(operation)
            assert fits == (run is not None)
            if run is not None:
                assert operation <= run.size < 2 * operation
                assert run.start % run.size == 0
                runs.append(run)
        buddy.check_invariants()
        taken = [b for run in runs for b in range(run.start, run.start + run.size)]
        assert len(set(taken)) == len(taken) == num_blocks - buddy.num_free
    for run in runs:
        buddy.release(run)
    buddy.check_invariants()
    assert buddy.can_take(buddy.largest_run)
