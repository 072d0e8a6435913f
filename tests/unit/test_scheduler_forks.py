import pytest

from fabric.core.request import FinishReason
from tests.unit.scheduling_world import EOS, World, expected_output


def test_only_one_sequence_computes_the_prompt_and_all_sample_from_its_end():
    world = World(max_num_batched_tokens=8)
    request = world.add("a", 10, n=3)
    assert world.counts(world.step()) == [8]
    output = world.step()
    assert [(item.num_new_tokens, item.num_samples) for item in output.scheduled] == [(2, 3)]
    assert [update.index for update in world.updates] == [0, 1, 2]
    assert len({update.key for update in world.updates}) == 3
    world.run()
    for index in range(3):
        assert world.tokens["a", index] == expected_output(request, index)
    assert world.ends["a"].usage.completion_tokens == 12


def test_siblings_share_the_prompt_and_copy_only_its_partial_block():
    world = World(num_blocks=16)
    world.add("a", 10, n=3)
    world.step()
    assert world.kv.num_free_blocks == 16 - 3
    output = world.step()
    assert len(output.copies) == 2
    assert {source for source, _ in output.copies} == {2}
    assert world.kv.num_free_blocks == 16 - 5
    assert world.step().copies == ()


def test_siblings_of_a_prompt_of_whole_blocks_copy_nothing():
    world = World(num_blocks=16)
    world.add("a", 8, n=3)
    world.step()
    assert world.step().copies == ()
    assert world.kv.num_free_blocks == 16 - 5


def test_running_slots_for_all_siblings_are_reserved_at_admission():
    world = World(max_num_seqs=4, max_num_batched_tokens=8)
    world.add("a", 12, n=3, max_tokens=3)
    world.add("b", 2, n=2, max_tokens=3)
    world.step()
    assert len(world.step().scheduled) == 1
    while "a" not in world.ends:
        assert len(world.step().scheduled) <= 3
    world.run()
    assert world.scheduler._pool.num_slots == 0


def test_siblings_that_end_at_their_first_token_are_never_forked():
    world = World()
    world.add("a", 5, n=4, max_tokens=1)
    world.step()
    assert len(world.updates) == 4
    assert {update.finish_reason for update in world.updates} == {FinishReason.LENGTH}
    assert not world.scheduler.has_work
    assert world.kv.num_free_blocks == 64


@pytest.mark.parametrize("first_to_end", range(3))
def test_one_sequence_may_end_at_its_first_token_and_its_siblings_go_on(first_to_end):
    def next_token(sampling, index, position, history):
        return EOS if index == first_to_end else 50

    world = World(next_token=next_token)
    world.add("a", 6, n=3, max_tokens=4, ignore_eos=False)
    world.run()
    expected = {("a", i): [50] * 4 for i in range(3)} | {("a", first_to_end): [EOS]}
    assert world.tokens == expected
    assert world.kv.num_free_blocks == 64


def test_preempted_siblings_are_recomputed_alone():
    world = World()
    request = world.add("a", 6, n=3, max_tokens=6)
    world.step()
    world.step()
    world.scheduler.preempt("a")
    output = world.step()
    assert len(output.new_sequences) == 3
    assert [item.num_samples for item in output.scheduled] == [1, 1, 1]
    world.run()
    for index in range(3):
        assert world.tokens["a", index] == expected_output(request, index)


def test_a_request_preempted_in_its_prompt_still_forks_afterwards():
    world = World(max_num_batched_tokens=8)
    request = world.add("a", 10, n=3)
    world.step()
    world.scheduler.preempt("a")
    world.run()
    for index in range(3):
        assert world.tokens["a", index] == expected_output(request, index)
    assert world.scheduler._pool.num_slots == 0


def test_siblings_that_outgrow_the_pool_end_one_after_the_other():
    world = World(num_blocks=5)
    request = world.add("a", 6, n=4, max_tokens=14)
    world.run()
    for index in range(4):
        assert world.tokens["a", index] == expected_output(request, index)
    assert world.scheduler.report().num_preemptions > 0
    assert world.kv.num_free_blocks == 5
