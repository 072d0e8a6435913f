from itertools import pairwise

import pytest

from fabric.core.profile import Profile
from fabric.scheduler.policies import PolicyConfig
from fabric.scheduler.srw import SRW
from tests.unit.policy_world import PolicyWorld

PLAIN = PolicyConfig("srw", ageing=0.0, min_run_s=0.0)


def srw(world: PolicyWorld) -> SRW:
    assert isinstance(world.policy, SRW)
    return world.policy


def remaining_s(world: PolicyWorld, name: str) -> float:
    return srw(world).remaining_s(world.sequence(name))


def test_work_is_the_prompt_and_the_tokens_after_the_one_that_it_gives() -> None:
    world = PolicyWorld(PLAIN)
    world.add("a", 5, 99, expected_tokens=11)
    assert remaining_s(world, "a") == 15.0
    world.step()
    assert remaining_s(world, "a") == 10.0


def test_tokens_take_as_long_as_in_a_full_batch() -> None:
    profile = Profile(((1, 1.0), (2, 2.0)), ((1, 1, 1.0), (4, 1, 7.0)))
    world = PolicyWorld(PLAIN, profile, max_num_seqs=4)
    world.add("a", 5, 99, expected_tokens=11)
    assert remaining_s(world, "a") == 75.0


def test_a_computed_part_of_the_prompt_is_done() -> None:
    world = PolicyWorld(PLAIN)
    world.add("a", 100, 99, expected_tokens=1)
    assert remaining_s(world, "a") == 100.0
    world.step()
    assert remaining_s(world, "a") == 36.0


def test_the_shortest_goes_first_and_takes_the_place_of_longer_ones() -> None:
    world = PolicyWorld(PLAIN)
    world.add("long", 1, 20, expected_tokens=20)
    world.step()
    world.add("short", 1, 2, expected_tokens=2)
    world.add("middle", 1, 5, expected_tokens=5)
    names = [world.step()[0] for _ in range(8)]
    assert names == ["short"] * 2 + ["middle"] * 5 + ["long"]


def test_priority_classes_outrank_work() -> None:
    world = PolicyWorld(PLAIN)
    world.add("short", 1, 2, expected_tokens=2)
    world.add("first class", 1, 20, expected_tokens=20, priority=-1)
    assert world.step() == ["first class"]


def test_max_tokens_bounds_a_guess_but_is_none() -> None:
    world = PolicyWorld(PLAIN)
    world.add("bounded", 1, 20)
    world.add("not bounded", 1, 100_000 // 64)
    world.add("guessed too high", 1, 20, expected_tokens=500)
    assert remaining_s(world, "bounded") == 20.0
    assert 100.0 < remaining_s(world, "not bounded") < 1000.0
    assert remaining_s(world, "guessed too high") == 20.0


def test_a_guess_that_was_too_low_grows() -> None:
    world = PolicyWorld(PLAIN)
    world.add("a", 1, 999, expected_tokens=10)
    seen = []
    for _ in range(200):
        world.step()
        seen.append(remaining_s(world, "a"))
    assert seen[7] == 2.0
    assert seen[39] == pytest.approx(10.0, rel=0.3)
    assert seen[199] == pytest.approx(50.0, rel=0.3)


def test_lengths_are_learned_for_each_tenant() -> None:
    world = PolicyWorld(PLAIN)
    for number in range(40):
        world.add(f"terse {number}", 1, 3, tenant="terse")
        world.add(f"verbose {number}", 1, 90, tenant="verbose")
        world.run()
    world.add("v", 1, 999, tenant="verbose")
    world.add("t", 1, 999, tenant="terse")
    assert remaining_s(world, "t") < remaining_s(world, "v") / 2
    assert world.step() == ["t"]


def test_a_cancelled_request_that_gave_nothing_teaches_nothing() -> None:
    world = PolicyWorld(PLAIN)
    world.add("a", 1, 999)
    before = remaining_s(world, "a")
    world.scheduler.cancel("a")
    world.add("b", 1, 999)
    assert remaining_s(world, "b") == before


def test_age_counts_like_less_work() -> None:
    world = PolicyWorld(PolicyConfig("srw", ageing=0.5, min_run_s=0.0))
    world.add("old", 1, 30, expected_tokens=30)
    world.now = 41.0
    world.add("new", 1, 10, expected_tokens=10)
    assert world.step() == ["old"]
    world = PolicyWorld(PolicyConfig("srw", ageing=0.5, min_run_s=0.0))
    world.add("old", 1, 30, expected_tokens=30)
    world.now = 39.0
    world.add("new", 1, 10, expected_tokens=10)
    assert world.step() == ["new"]


def test_a_sequence_that_began_to_run_keeps_its_place_for_a_while() -> None:
    world = PolicyWorld(PolicyConfig("srw", ageing=0.0, min_run_s=3.0))
    world.add("long", 1, 30, expected_tokens=30)
    world.step()
    world.add("short", 1, 6, expected_tokens=6)
    names = [world.step()[0] for _ in range(11)]
    # Three seconds after its first iteration; who is back soon isn't kept again.
    assert names == ["long"] * 3 + ["short"] * 6 + ["long"] * 2


def test_priority_outranks_the_least_run() -> None:
    world = PolicyWorld(PolicyConfig("srw", ageing=0.0, min_run_s=9.0))
    world.add("a", 1, 30, expected_tokens=30)
    world.step()
    world.add("first class", 1, 60, expected_tokens=60, priority=-1)
    assert world.step() == ["first class"]


def test_iterations_longer_than_the_least_run_dont_keep_a_sequence_for_ever() -> None:
    world = PolicyWorld(PolicyConfig("srw", ageing=0.0, min_run_s=0.5))
    world.add("long", 1, 30, expected_tokens=30)
    world.step()
    world.add("short", 1, 6, expected_tokens=6)
    world.step()
    assert world.step() == ["short"]


def test_sequences_like_each_other_dont_take_turns() -> None:
    world = PolicyWorld(PLAIN)
    for name in "abc":
        world.add(name, 1, 40)
    names = [world.step()[0] for _ in range(120)]
    switches = sum(before != after for before, after in pairwise(names))
    assert switches <= 12


def test_next_run_grows_with_the_work_of_those_that_need_less() -> None:
    world = PolicyWorld(PLAIN, max_num_seqs=2)
    world.add("long", 1, 200, expected_tokens=200)
    world.add("first", 1, 8, expected_tokens=8)
    assert srw(world).next_run_s(world.sequence("first"), 0.0) == 0.0
    few = srw(world).next_run_s(world.sequence("long"), 0.0)
    for number in range(9):
        world.add(str(number), 1, 8, expected_tokens=8)
    many = srw(world).next_run_s(world.sequence("long"), 0.0)
    # Ten of 8 s, two at a time; sizes are known to a factor of two.
    assert many == pytest.approx(10 * few)
    assert 20.0 < many < 80.0


def test_nothing_is_kept_of_sequences_that_left() -> None:
    world = PolicyWorld(PolicyConfig("srw", min_run_s=2.0), max_num_seqs=2)
    for number in range(9):
        world.add(str(number), 1 + number, 3)
    for _ in range(4):
        world.step()
    world.scheduler.cancel("8")
    world.run()
    assert not srw(world)._work
    assert not srw(world)._kept
    assert not any(srw(world)._num_of_size)
