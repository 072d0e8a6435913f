import pytest

from fabric.core.errors import DeadlineExceeded, RequestCancelled
from fabric.core.request import FinishReason, StopMatch
from tests.unit.scheduling_world import EOS, World


def says(*tokens: int):
    """A worker that samples these output tokens after a prompt of three, then 50s."""

    def next_token(sampling, index, position, history):
        return tokens[position - 3] if position - 3 < len(tokens) else 50

    return next_token


def ended(world: World, **sampling: object) -> tuple[list[int], FinishReason, StopMatch | None]:
    world.add("a", 3, **{"max_tokens": 6, "ignore_eos": False, **sampling})
    match = None
    while world.scheduler.has_work:
        world.step()
        match = world.updates[0].stop_match if world.updates else match
    return world.tokens["a", 0], world.reasons["a", 0], match


def test_eos_ends_a_sequence_and_is_its_last_token():
    tokens, reason, match = ended(World(next_token=says(9, EOS)))
    assert tokens == [9, EOS]
    assert reason is FinishReason.STOP
    assert match == StopMatch(token_id=EOS)


def test_ignored_eos_ends_nothing():
    tokens, reason, match = ended(World(next_token=says(9, EOS)), ignore_eos=True)
    assert tokens == [9, EOS, 50, 50, 50, 50]
    assert reason is FinishReason.LENGTH
    assert match is None


def test_a_stop_token_ends_a_sequence_even_where_eos_is_ignored():
    world = World(next_token=says(9, 7))
    tokens, reason, match = ended(world, stop_token_ids=(7,), ignore_eos=True)
    assert tokens == [9, 7]
    assert reason is FinishReason.STOP
    assert match == StopMatch(token_id=7)


def test_no_stop_token_counts_before_min_tokens():
    world = World(next_token=says(EOS, 7, 7))
    tokens, reason, _ = ended(world, stop_token_ids=(7,), min_tokens=2)
    assert tokens == [EOS, 7, 7]
    assert reason is FinishReason.STOP


def test_a_stop_at_the_last_allowed_token_is_a_stop():
    _, reason, _ = ended(World(next_token=says(9, EOS)), max_tokens=2)
    assert reason is FinishReason.STOP


def test_the_models_context_ends_a_sequence_with_length():
    tokens, reason, _ = ended(World(next_token=says(), max_model_len=7), max_tokens=100)
    assert tokens == [50, 50, 50, 50]
    assert reason is FinishReason.LENGTH


def test_a_stop_string_ends_a_sequence_at_once():
    world = World(num_blocks=16)
    world.add("a", 3, max_tokens=10)
    world.step()
    (update,) = world.updates
    world.scheduler.stop(update.key, StopMatch(text="."), world.now)
    world.scheduler.stop(update.key, StopMatch(text="."), world.now)
    (end,) = world.scheduler.take_ended()
    assert end.error is None
    assert end.unfinished == ()
    assert end.usage.completion_tokens == 1
    assert world.kv.num_free_blocks == 16
    assert not world.scheduler.has_work


def test_a_stop_string_ends_a_preempted_sequence_too():
    world = World()
    world.add("a", 3, max_tokens=10)
    world.step()
    world.scheduler.preempt("a")
    world.scheduler.stop(world.updates[0].key, StopMatch(text="."), world.now)
    world.take_ended()
    assert world.ends["a"].error is None
    assert not world.scheduler.has_work


@pytest.mark.parametrize("num_steps", range(6))
@pytest.mark.parametrize("is_preempted", [False, True])
def test_a_request_cancelled_at_any_stage_frees_its_blocks_at_once(num_steps, is_preempted):
    world = World(num_blocks=16, max_num_batched_tokens=8)
    world.add("a", 20, n=3, max_tokens=10)
    for _ in range(num_steps):
        world.step()
    if is_preempted:
        world.scheduler.preempt("a")
    world.scheduler.cancel("a")
    assert world.kv.num_free_blocks == 16
    assert world.scheduler.has_work
    (end,) = world.scheduler.take_ended()
    assert isinstance(end.error, RequestCancelled)
    assert end.unfinished == tuple((i, FinishReason.CANCELLED) for i in range(3))
    assert not world.scheduler.has_work
    world.add("b", 30, n=2)
    world.run()
    assert len(world.worker.rows) == 2


def test_a_result_for_a_request_cancelled_meanwhile_is_dropped():
    world = World()
    world.add("a", 3)
    world.add("b", 3)
    output = world.scheduler.schedule(0.0)
    result = world.worker.execute(output)
    world.scheduler.cancel("a")
    updates = world.scheduler.update_from_output(output, result, 0.0)
    assert [update.request_id for update in updates] == ["b"]


def test_cancelling_an_unknown_request_does_nothing():
    world = World()
    world.scheduler.cancel("nobody")
    assert not world.scheduler.has_work


@pytest.mark.parametrize("limits", [{}, {"max_num_seqs": 1}])
def test_a_request_ends_in_the_first_iteration_after_its_deadline(limits):
    world = World(num_blocks=16, **limits)
    world.add("first", 3, max_tokens=20)
    world.add("late", 3, max_tokens=50, timeout_s=5.0)
    while "late" not in world.ends:
        world.step()
    end = world.ends["late"]
    assert isinstance(end.error, DeadlineExceeded)
    assert end.unfinished == ((0, FinishReason.DEADLINE),)
    assert 5.0 <= end.timing.e2e_s <= 6.0
    world.run()
    assert world.ends["first"].error is None
    assert world.kv.num_free_blocks == 16


def test_a_request_that_made_its_deadline_is_not_ended_again():
    world = World()
    world.add("a", 3, max_tokens=1, timeout_s=3.0)
    world.run()
    world.now = 10.0
    world.step()
    assert world.ends["a"].error is None


def test_timing_tells_queue_prefill_and_decode_apart():
    world = World(max_num_seqs=1, max_num_batched_tokens=4)
    world.add("first", 4, max_tokens=1)
    world.add("a", 8, max_tokens=3)
    world.run()
    timing = world.ends["a"].timing
    assert (timing.queue_s, timing.prefill_s, timing.ttft_s) == (3.0, 3.0, 6.0)
    assert (timing.decode_s, timing.e2e_s) == (4.0, 10.0)
    assert world.ends["a"].usage.prompt_tokens == 8
    assert world.ends["a"].usage.completion_tokens == 3
