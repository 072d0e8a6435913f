"""All policies with swapping, against a worker that checks every KV entry and copies when it likes.

Virtual time: an iteration takes a second and another passes before the next one.
"""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.core.profile import Profile
from fabric.core.request import Objectives
from fabric.core.status import RequestPhase
from fabric.scheduler.policies import PolicyConfig
from tests.unit.scheduling_world import BLOCK_BYTES, World, expected_output
from tests.unit.test_scheduler_properties import arrivals, play, pools

POLICIES = ("fcfs", "orca", "static", "priority", "edf", "mlfq", "naive_mlfq", "srw")


class WhenItLikes:
    """Ends transfers late, out of order, or with an error."""

    def __init__(self, seed: int, error_share: float) -> None:
        self._random = random.Random(seed)
        self._error_share = error_share

    def __call__(self, transfers):
        chance = self._random.random
        ending = [transfer for transfer in transfers if chance() < 0.4]
        self._random.shuffle(ending)
        return [(t, "it broke" if chance() < self._error_share else "") for t in ending]


@settings(max_examples=150, deadline=None)
@given(
    limits=pools(),
    policy=st.sampled_from(POLICIES),
    trace=st.lists(arrivals(), min_size=1, max_size=9),
    num_slots=st.tuples(st.integers(0, 30), st.integers(0, 12)),
    swap=st.sampled_from(("proactive", "on_demand", "blocking")),
    preemption=st.sampled_from(("auto", "swap", "recompute")),
    copies=st.tuples(st.integers(0, 9), st.sampled_from((0.0, 0.0, 0.3))),
    timeout_s=st.sampled_from((3.0, 1000.0)),
)
def test_every_request_ends_with_its_own_tokens_however_blocks_move(
    limits, policy, trace, num_slots, swap, preemption, copies, timeout_s
):
    world = World(
        **limits,
        num_slots=num_slots,
        copies=WhenItLikes(*copies),
        swap=swap,
        preemption=preemption,
        transfer_timeout_s=timeout_s,
    )
    config = PolicyConfig(name=policy, quantum_s=2.0, alpha_s=20.0)
    world.scheduler.set_policy(config, 0.0)
    requests = play(world, trace, swap=True)
    for (name, index), tokens in world.tokens.items():
        expected = expected_output(requests[name], index)
        whole = world.ends[name].error is None
        assert tokens == (expected if whole else expected[: len(tokens)])
    assert set(world.ends) == set(requests)
    world.settle()
    report = world.scheduler.report()
    assert report.num_free_blocks == report.num_blocks
    assert (report.num_host_blocks, report.num_disk_blocks, report.num_swapped) == (0, 0, 0)


@pytest.mark.parametrize("num_slots", [(64, 0), (0, 64), (4, 64)])
def test_forced_swapping_at_every_iteration_changes_no_token_and_computes_nothing_twice(num_slots):
    world = World(num_slots=num_slots, copies=WhenItLikes(1, 0.0), prefix_cache=False)
    requests = {name: world.add(name, 9, max_tokens=6) for name in "abc"}
    while world.scheduler.has_work:
        world.step()
        for name in requests:
            world.scheduler.preempt(name, swap=True)
    for name, request in requests.items():
        assert world.tokens[name, 0] == expected_output(request, 0)
        assert world.ends[name].timing.num_preemptions == 5
        assert world.ends[name].timing.recomputed_tokens == 0
        assert world.ends[name].timing.swapped_bytes > 0
        assert world.ends[name].timing.swapped_s > 0
    assert world.scheduler.report().num_tokens == 3 * (9 + 5)


def test_a_full_block_that_was_parked_before_is_not_copied_out_again():
    world = World(num_slots=(64, 0))
    world.add("a", 17, max_tokens=6)
    world.step()
    world.scheduler.preempt("a", swap=True)
    for _ in range(3):
        world.step()
    assert world.scheduler.report().swapped_out_bytes == 5 * BLOCK_BYTES
    world.scheduler.preempt("a", swap=True)
    world.run()
    assert world.scheduler.report().swapped_out_bytes == 6 * BLOCK_BYTES
    assert world.ends["a"].timing.num_preemptions == 2


def test_a_transfer_that_never_ends_becomes_a_recomputation():
    world = World(num_slots=(64, 0), copies=lambda transfers: [], transfer_timeout_s=5.0)
    request = world.add("a", 9, max_tokens=6)
    world.step()
    world.scheduler.preempt("a", swap=True)
    world.run()
    assert world.tokens["a", 0] == expected_output(request, 0)
    assert world.scheduler.report().num_failed_transfers == 1
    assert world.ends["a"].timing.recomputed_tokens > 0


def test_a_request_of_higher_priority_takes_the_slot_of_one_that_runs():
    world = World(num_slots=(64, 0), max_num_seqs=1)
    world.scheduler.set_policy(PolicyConfig(name="priority"), 0.0)
    world.add("low", 5, priority=1, max_tokens=9)
    world.step()
    world.add("high", 5, priority=0, max_tokens=3)
    output = world.step()
    assert [item.key for item in output.scheduled] == [world.key_of("high")]
    low = next(s for s in world.scheduler.explain(world.now) if s.request_id == "low")
    assert low.phase is RequestPhase.PREEMPTED
    world.run()
    assert list(world.ends) == ["high", "low"]


def test_a_request_of_higher_priority_takes_the_blocks_of_one_that_runs():
    world = World(num_blocks=4, num_slots=(64, 0), prefix_cache=False, preemption="swap")
    world.scheduler.set_policy(PolicyConfig(name="priority"), 0.0)
    world.add("low", 12, priority=1, max_tokens=4)
    world.step()
    world.add("high", 9, priority=0, max_tokens=4)
    world.step()
    low = next(s for s in world.scheduler.explain(world.now) if s.request_id == "low")
    assert low.phase is RequestPhase.SWAPPING_OUT
    assert "high ranks before it" in low.last_preemption
    world.run()
    assert list(world.ends) == ["high", "low"]
    assert world.ends["low"].timing.recomputed_tokens == 0


def test_a_request_of_higher_priority_takes_the_tokens_of_those_that_run():
    world = World(max_num_seqs=4, max_num_batched_tokens=4)
    world.scheduler.set_policy(PolicyConfig(name="priority"), 0.0)
    for name in "abc":
        world.add(name, 1, priority=1, max_tokens=20)
    world.step()
    world.add("high", 12, priority=0, max_tokens=3)
    for _ in range(3):
        output = world.step()
        assert [item.key for item in output.scheduled] == [world.key_of("high")]
    assert len(world.step().scheduled) == 4


def test_swapping_is_chosen_where_the_link_is_fast_and_recomputing_where_it_is_slow():
    for seconds_per_byte, swaps in ((1e-9, True), (10.0, False)):
        world = World(num_blocks=7, num_slots=(64, 0), prefix_cache=False)
        speeds = world.scheduler._swappers[0].speeds
        speeds.copy_s = lambda tier, direction, size, each=seconds_per_byte: size * each
        for name in "ab":
            world.add(name, 11, max_tokens=9)
        world.run()
        report = world.scheduler.report()
        assert report.num_preemptions > 0
        assert (report.swapped_out_bytes > 0) == swaps
        assert (report.num_recomputed_tokens > 0) == (not swaps)


@pytest.mark.parametrize(("num_requests", "swaps"), [(2, False), (8, True)])
def test_a_slow_link_is_used_where_recomputing_would_hold_many_up(num_requests, swaps):
    world = World(num_blocks=3 * num_requests + 1, num_slots=(64, 0), prefix_cache=False)
    # A round trip takes about three times as long as computing a sequence again.
    world.scheduler._swappers[0].speeds.copy_s = lambda tier, direction, size: size * 1.25e-4
    for i in range(num_requests):
        world.add(str(i), 11, max_tokens=9)
    while not world.scheduler.report().num_preemptions:
        world.step()
    assert bool(world.scheduler.report().num_swapped) == swaps
    world.run()


def test_blocks_that_the_first_in_line_gathers_are_not_used_to_fetch_others_ahead():
    world = World(num_blocks=8, num_slots=(64, 0), preemption="swap", swap="proactive")
    world.scheduler.set_policy(PolicyConfig(name="priority"), 0.0)
    world.add("small", 3, priority=2, max_tokens=9)
    world.step()
    world.add("first", 9, priority=0, max_tokens=3)
    world.add("big", 25, priority=1)
    world.scheduler.preempt("small", swap=True)
    phases = []
    while "first" not in world.ends:
        world.step()
        statuses = world.scheduler.explain(world.now)
        phases.extend(s.phase for s in statuses if s.request_id == "small")
    assert set(phases[1:]) == {RequestPhase.SWAPPED}
    world.run()
    assert list(world.ends) == ["first", "big", "small"]


def test_sequences_that_are_recomputed_do_not_take_turns_without_a_new_token():
    world = World(
        num_blocks=20, block_size=1, num_batches=2, max_num_seqs=4, max_num_batched_tokens=4
    )
    queues = PolicyConfig(name="mlfq", quantum_s=2.0, alpha_s=8.0, alpha_load=0.0)
    world.scheduler.set_policy(queues, 0.0)
    for name in "ab":
        world.add(name, 14, max_tokens=4)
    world.run(max_steps=100)


def test_the_policy_can_be_changed_while_requests_run_wait_and_are_parked():
    world = World(num_blocks=12, num_slots=(64, 0), copies=WhenItLikes(3, 0.0), max_num_seqs=2)
    requests = {
        name: world.add(name, 6 + i, max_tokens=12, objectives=Objectives(e2e_s=9.0 - i))
        for i, name in enumerate("abcdef")
    }
    for name in (*POLICIES, *POLICIES):
        world.scheduler.set_policy(PolicyConfig(name=name, quantum_s=1.0), world.now)
        assert world.scheduler.report().policy == name
        statuses = world.scheduler.explain(world.now)
        assert {type(part) for status in statuses for part in status.rank} == {float}
        world.step()
    world.run()
    for name, request in requests.items():
        assert world.tokens[name, 0] == expected_output(request, 0)


def test_throughput_under_fourfold_overcommitment_is_nearly_that_of_fcfs():
    num_steps = {}
    profile = Profile.flat(1.0, 0.01)
    for name in ("fcfs", "mlfq", "srw"):
        world = World(
            num_blocks=32, num_slots=(512, 0), max_num_seqs=16, preemption="swap",
            swap="proactive", profile=profile,
        )  # fmt: skip
        world.scheduler.set_policy(PolicyConfig(name=name), 0.0)
        for i in range(32):
            world.add(f"r{i}", 8, max_tokens=8 + 2 * (i % 5))
        world.run()
        num_steps[name] = world.num_steps
    assert num_steps["fcfs"] >= 0.8 * num_steps["mlfq"]
    assert num_steps["fcfs"] >= 0.8 * num_steps["srw"]
