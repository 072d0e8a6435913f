import pytest

from fabric.core.errors import ConfigError, InvalidRequest, Overloaded
from fabric.scheduler.settings import SchedulerConfig
from tests.unit.scheduling_world import World, expected_output


def test_a_long_prompt_is_computed_in_chunks_and_sampled_once_at_its_end():
    world = World(max_num_batched_tokens=8)
    world.add("a", 20)
    outputs = [world.step() for _ in range(3)]
    assert [world.counts(output) for output in outputs] == [[8], [8], [4]]
    assert [output.scheduled[0].num_samples for output in outputs] == [0, 0, 1]


def test_decodes_and_prompt_chunks_share_one_budget():
    world = World(max_num_batched_tokens=10)
    world.add("a", 4, max_tokens=20)
    world.add("b", 4, max_tokens=20)
    world.step()
    world.add("c", 30)
    assert world.counts(world.step()) == [1, 1, 8]


def test_a_prompt_in_progress_never_holds_up_decodes():
    world = World(max_num_batched_tokens=8)
    world.add("decoding", 4, max_tokens=20)
    world.step()
    world.add("urgent", 30, priority=-1)
    for _ in range(3):
        assert world.counts(world.step()) == [1, 7]


def test_a_worker_learns_a_sequence_once_and_then_only_changes():
    world = World()
    world.add("a", 7)
    first, second, third = world.step(), world.step(), world.step()
    assert [len(o.new_sequences) for o in (first, second, third)] == [1, 0, 0]
    assert first.new_sequences[0].block_ids == (0, 1)
    assert second.scheduled[0].new_block_ids == ()
    assert third.scheduled[0].new_block_ids == (2,)


def test_a_finished_sequence_is_released_in_the_next_iteration():
    world = World()
    world.add("a", 3, max_tokens=1)
    world.add("b", 3)
    key = world.key_of("a")
    world.step()
    assert world.step().released == (key,)
    assert world.step().released == ()


def test_an_empty_iteration_leaves_releases_for_later():
    world = World()
    world.add("a", 3, max_tokens=1)
    key = world.key_of("a")
    world.step()
    assert world.step().released == ()
    world.add("b", 3)
    assert world.step().released == (key,)


def test_a_big_request_at_the_front_is_not_overtaken_by_small_ones():
    world = World(num_blocks=10)
    world.add("running", 20, max_tokens=4)
    world.step()
    world.add("big", 28)
    world.add("small", 2)
    assert len(world.step().scheduled) == 1
    world.run()
    assert world.ends["small"].timing.queue_s >= world.ends["big"].timing.queue_s


def test_admission_leaves_the_watermark_free():
    world = World(num_blocks=10, watermark=0.2)
    world.add("a", 16)
    world.add("b", 17)
    world.step()
    assert world.scheduler.report().num_waiting == 1
    world = World(num_blocks=10, watermark=0.2)
    world.add("a", 16)
    world.add("b", 16)
    world.step()
    assert world.scheduler.report().num_running == 2


def test_a_lone_request_may_use_the_watermark():
    world = World(num_blocks=4, watermark=0.5)
    world.add("a", 12)
    world.run()
    assert world.ends["a"].error is None


def test_running_sequences_are_bounded():
    world = World(max_num_seqs=2)
    for name in "abc":
        world.add(name, 3)
    assert len(world.step().scheduled) == 2
    assert world.scheduler.report().num_waiting == 1


def test_a_lower_priority_number_goes_first():
    world = World(max_num_seqs=1)
    world.add("late", 3, priority=1)
    world.add("soon", 3, priority=0)
    world.run()
    assert world.ends["soon"].timing.queue_s < world.ends["late"].timing.queue_s


def test_a_full_queue_refuses_with_a_time_to_come_back():
    world = World(max_num_waiting=2)
    world.add("a", 3)
    world.add("b", 3)
    with pytest.raises(Overloaded) as refused:
        world.add("c", 3)
    assert refused.value.retry_after_s == 1.0
    world.run()
    assert set(world.ends) == {"a", "b"}


def test_the_time_to_come_back_follows_the_pace_of_requests():
    world = World(max_num_waiting=4, max_num_seqs=1)
    for name in "abcd":
        world.add(name, 3, max_tokens=5)
    world.run()
    for name in "efgh":
        world.add(name, 3)
    with pytest.raises(Overloaded) as refused:
        world.add("i", 3)
    assert refused.value.retry_after_s == pytest.approx(4 * 10.0)


@pytest.mark.parametrize(
    ("prompt", "sampling", "field"),
    [
        (0, {}, "prompt"),
        (64, {}, "prompt"),
        (8, {"max_tokens": 26}, "prompt"),
        (8, {"n": 9}, "sampling.n"),
    ],
)
def test_a_request_that_could_never_run_is_refused(prompt, sampling, field):
    world = World(num_blocks=8, max_model_len=64)
    with pytest.raises(InvalidRequest) as refused:
        world.add("a", prompt, **sampling)
    assert refused.value.violations[0].field == field
    assert not world.scheduler.has_work


def test_the_largest_request_that_fits_the_pool_runs():
    world = World(num_blocks=8)
    request = world.add("a", 8, max_tokens=25)
    world.run()
    assert world.tokens["a", 0] == expected_output(request, 0)


def test_a_request_id_in_use_is_refused():
    world = World()
    world.add("a", 3)
    with pytest.raises(InvalidRequest, match="in use"):
        world.add("a", 3)
    world.run()
    world.ends.clear()
    world.tokens.clear()
    world.reasons.clear()
    world.add("a", 3)
    world.run()
    assert "a" in world.ends


def test_limits_that_starve_a_sequence_are_refused():
    with pytest.raises(ConfigError, match="max_num_batched_tokens"):
        SchedulerConfig(max_num_seqs=9, max_num_batched_tokens=8)
    with pytest.raises(ConfigError, match="watermark"):
        SchedulerConfig(watermark=1.0)
    with pytest.raises(ConfigError, match="max_num_seqs"):
        SchedulerConfig(max_num_seqs=0)


def test_the_report_counts_requests_blocks_and_progress():
    world = World(num_blocks=16, max_num_seqs=1)
    world.add("a", 6, max_tokens=3)
    world.add("b", 6, max_tokens=3)
    world.step()
    report = world.scheduler.report()
    assert (report.num_running, report.num_waiting) == (1, 1)
    assert (report.num_free_blocks, report.num_blocks, report.num_cached_blocks) == (14, 16, 1)
    assert (report.num_steps, report.num_tokens) == (1, 6)
    world.run()
    assert world.scheduler.report().num_tokens == 16
    assert world.scheduler.report().num_free_blocks == 16
