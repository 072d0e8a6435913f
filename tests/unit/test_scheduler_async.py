"""Iterations that are scheduled before the tokens of the one in flight are known."""

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.core.request import FinishReason, StopMatch
from fabric.core.sampling import SamplingParams
from fabric.kv.transfer import Transfer
from fabric.scheduler.output import SchedulerOutput, StepResult
from fabric.scheduler.policies import PolicyConfig
from tests.unit.scheduling_world import BLOCK_BYTES, EOS, World, expected_output
from tests.unit.test_scheduler_properties import arrivals, check_outcome, play, pools


def ahead(**changes: object) -> World:
    return World(**{"async_scheduling": True, "is_lazy": True, **changes})  # type: ignore[arg-type]


def ends_after(num_tokens: int) -> Callable[..., int]:
    """A model that says 9 so many times, and then that it ends."""
    starts: dict[int, int] = {}

    def next_token(params: SamplingParams, _index: int, position: int, _history: int) -> int:
        start = starts.setdefault(params.seed, position)
        return EOS if position - start == num_tokens else 9

    return next_token


def test_a_decode_is_scheduled_while_the_prompt_s_iteration_runs():
    world = ahead()
    request = world.add("a", 4, max_tokens=6)
    first, second = world.step(), world.step()
    assert (world.counts(first), world.counts(second)) == ([4], [1])
    assert second.scheduled[0].new_token_ids == ()
    world.run()
    assert world.tokens["a", 0] == expected_output(request, 0)


def test_workers_are_never_told_a_token_that_they_have_sampled():
    world = ahead()
    world.add("a", 4, max_tokens=6)
    told = []
    while world.scheduler.has_work:
        told += [item.new_token_ids for item in world.step().scheduled]
    assert told == [()] * 6


@pytest.mark.parametrize("limits", [{"max_tokens": 5}, {"max_tokens": 90}])
def test_nothing_is_scheduled_past_a_length_that_is_known(limits):
    world = ahead(max_model_len=24)
    world.add("a", 8, **limits)
    world.run()
    num_output = min(limits["max_tokens"], 16)
    report = world.scheduler.report()
    assert len(world.tokens["a", 0]) == num_output
    assert (report.num_tokens, report.num_superfluous_tokens) == (8 + num_output - 1, 0)


def test_a_sequence_that_turns_out_to_have_ended_is_computed_once_in_vain():
    world = ahead(next_token=ends_after(3))
    world.add("a", 4, max_tokens=50, ignore_eos=False)
    world.run()
    while world.in_flight:
        world.step()
    report = world.scheduler.report()
    assert world.tokens["a", 0] == [9, 9, 9, EOS]
    assert world.reasons["a", 0] is FinishReason.STOP
    assert report.num_superfluous_tokens == 1
    assert report.num_free_blocks == report.num_blocks


def test_blocks_of_what_has_ended_serve_another_although_an_iteration_still_writes_to_them():
    world = ahead(num_blocks=5, next_token=ends_after(2))
    world.add("a", 12, max_tokens=8, ignore_eos=False)
    world.add("b", 12, max_tokens=8, seed=1)
    for _ in range(4):
        world.step()
    assert world.reasons == {("a", 0): FinishReason.STOP}
    # It gets all blocks while the iteration is in flight that writes to one of them.
    assert [len(world.in_flight), world.counts(world.step())] == [1, [12]]
    world.run()
    assert len(world.tokens["b", 0]) == 8


def test_a_stop_string_is_found_while_the_next_iteration_runs():
    world = ahead()
    world.add("a", 4, max_tokens=50)
    world.add("b", 4, max_tokens=6)
    for _ in range(4):
        world.step()
    world.scheduler.stop(world.key_of("a"), StopMatch(text="stop"), world.now)
    world.run()
    assert len(world.tokens["a", 0]) == 3
    assert len(world.tokens["b", 0]) == 6
    assert world.scheduler.report().num_superfluous_tokens == 1


def test_siblings_wait_for_their_first_tokens():
    world = ahead()
    request = world.add("a", 6, n=3, max_tokens=5)
    assert world.counts(world.step()) == [6]
    assert world.counts(world.step()) == []
    assert world.counts(world.step()) == [1, 1, 1]
    assert world.counts(world.step()) == [1, 1, 1]
    world.run()
    for index in range(3):
        assert world.tokens["a", index] == expected_output(request, index)


def test_preempting_everything_after_every_step_still_ends_everything():
    world = ahead(num_slots=(64, 0))
    requests = {f"r{i}": world.add(f"r{i}", 5 + i, max_tokens=9) for i in range(5)}
    while world.scheduler.has_work:
        world.step()
        for i, name in enumerate(requests):
            world.scheduler.preempt(name, swap=i % 2 == 0)
    for name, request in requests.items():
        assert world.tokens[name, 0] == expected_output(request, 0)


def test_what_an_iteration_in_flight_computes_of_a_prompt_is_parked_with_the_rest():
    world = ahead(num_slots=(64, 0), max_num_batched_tokens=8, max_num_seqs=4)
    request = world.add("a", 24, max_tokens=3)
    for _ in range(2):
        world.step()
    # The second chunk is in flight.
    world.scheduler.preempt("a", swap=True)
    world.run()
    assert world.tokens["a", 0] == expected_output(request, 0)
    assert world.scheduler.report().num_recomputed_tokens == 0
    assert world.scheduler.report().swapped_out_bytes == 4 * BLOCK_BYTES


def test_siblings_that_are_parked_while_they_are_drawn_are_drawn_again():
    world = ahead(num_slots=(64, 0))
    request = world.add("a", 6, n=2, max_tokens=4)
    world.step()
    world.scheduler.preempt("a", swap=True)
    world.run()
    for index in range(2):
        assert world.tokens["a", index] == expected_output(request, index)


def test_what_was_begun_on_an_iteration_that_fails_is_void():
    world = ahead(is_lazy=False)
    request = world.add("a", 6, max_tokens=5)
    first, second = (world.scheduler.schedule(float(i)) for i in range(2))
    failed = StepResult(first.step, (), "the disk is gone")
    good = [world.worker.execute(output) for output in (first, second)][1]
    assert world.scheduler.update_from_output(first, failed, 2.0) == []
    assert world.counts(world.scheduler.schedule(3.0)) == []
    assert world.scheduler.update_from_output(second, good, 4.0) == []
    world.run()
    assert world.tokens["a", 0] == expected_output(request, 0)


def test_stages_of_a_pipeline_are_not_run_ahead_of():
    world = World(num_batches=2, async_scheduling=True)
    world.add("a", 4, max_tokens=4)
    assert world.counts(world.step()) == [4]
    assert world.counts(world.step()) == []


def test_no_second_is_counted_twice_although_iterations_overlap():
    world = ahead()
    world.add("a", 4, max_tokens=12)
    spent: list[float] = []
    policy = world.scheduler._pool.policy
    policy.note_run = lambda sequence, elapsed_s, now: (spent.append(elapsed_s), sequence.rank)[1]  # type: ignore[method-assign,func-returns-value]
    start_s = world.now + 1.0
    world.run()
    # The last token ends the sequence: nobody's rank is asked for then.
    assert sum(spent) == world.now - start_s - 2.0


def random_copies(seed: int) -> Callable[[list[Transfer]], list[tuple[Transfer, str]]]:
    """Copies end at any time, in any order, and now and then fail."""
    draw = random.Random(seed)

    def copies(transfers: list[Transfer]) -> list[tuple[Transfer, str]]:
        ended = [transfer for transfer in transfers if draw.random() < 0.6]
        draw.shuffle(ended)
        return [(transfer, "it broke" if draw.random() < 0.1 else "") for transfer in ended]

    return copies


@settings(max_examples=120, deadline=None)
@given(
    pools(),
    st.lists(arrivals(), min_size=1, max_size=10),
    st.sampled_from(("fcfs", "priority", "mlfq", "srw")),
    st.sampled_from(((0, 0), (64, 0), (8, 64))),
    st.booleans(),
    st.integers(0, 99),
)
def test_every_request_ends_with_the_tokens_that_it_has_alone(
    pool, trace, policy, num_slots, is_lazy, seed
):
    world = ahead(
        **{**pool, "num_batches": 1},
        policy=PolicyConfig(policy),
        num_slots=num_slots,
        copies=random_copies(seed) if num_slots[0] else None,
        transfer_timeout_s=1e9,
        is_lazy=is_lazy,
    )
    requests = play(world, trace, swap=seed % 2 == 0)
    world.settle()
    check_outcome(world, requests)


@settings(max_examples=60, deadline=None)
@given(pools(), st.lists(arrivals(), min_size=1, max_size=10))
def test_running_ahead_changes_no_token_and_wastes_one_for_each_end_at_most(pool, trace):
    pool |= {"num_batches": 1}
    worlds = World(**pool), ahead(**pool)
    outcomes = []
    for world in worlds:
        requests = play(world, trace)
        while world.in_flight:
            world.step()
        check_outcome(world, requests)
        outcomes.append(world)
    behind, before = outcomes
    for name, end in before.ends.items():
        if end.error is None and behind.ends[name].error is None:
            for index in range(requests[name].sampling.n):
                assert before.tokens[name, index] == behind.tokens[name, index]
                assert before.reasons[name, index] is behind.reasons[name, index]
    num_sequences = sum(request.sampling.n for request in requests.values())
    num_chunk = pool["max_num_batched_tokens"]
    num_cut_off = sum(end.error is not None for end in before.ends.values())
    num_wasted = before.scheduler.report().num_superfluous_tokens
    assert num_wasted <= num_sequences + 2 * num_cut_off * num_chunk


@settings(max_examples=20, deadline=None)
@given(pools(), st.lists(arrivals(), min_size=1, max_size=8))
def test_the_same_trace_gives_the_same_iterations_however_late_they_are_computed(pool, trace):
    def outputs(is_lazy: bool) -> list[SchedulerOutput]:
        world = ahead(**{**pool, "num_batches": 1}, is_lazy=is_lazy)
        seen: list[SchedulerOutput] = []
        schedule = world.scheduler.schedule

        def watched(now: float) -> SchedulerOutput:
            seen.append(schedule(now))
            return seen[-1]

        world.scheduler.schedule = watched  # type: ignore[method-assign]
        play(world, trace)
        return seen

    assert outputs(True) == outputs(False)
