from typing import get_args

import pytest

from fabric.core.errors import ConfigError
from fabric.core.profile import Profile
from fabric.core.request import Objectives
from fabric.scheduler.policies import PolicyConfig, PolicyName
from tests.unit.policy_world import PolicyWorld
from tests.unit.scheduling_world import World, expected_output

EDF_CONFIG = PolicyConfig("edf")


@pytest.mark.parametrize("name", get_args(PolicyName))
def test_every_policy_serves_all_and_says_its_name(name: PolicyName) -> None:
    world = PolicyWorld(PolicyConfig(name), max_num_seqs=3)
    assert world.policy.name == name
    for number in range(12):
        options = {"objectives": Objectives(9.0, 1.0)} if number % 2 else {}
        world.add(str(number), 1 + number * 7, 1 + number % 5, priority=number % 3, **options)
    world.run()
    assert len(world.ends) == 12


@pytest.mark.parametrize("name", get_args(PolicyName))
def test_every_policy_can_take_over_what_runs_already(name: PolicyName) -> None:
    world = PolicyWorld(PolicyConfig("fcfs"), max_num_seqs=2)
    for number in range(6):
        world.add(str(number), 3, 6, objectives=Objectives(tpot_s=1.0))
    for _ in range(3):
        world.step()
    world.scheduler.set_policy(PolicyConfig(name), world.now)
    world.run()
    assert len(world.ends) == 6


@pytest.mark.parametrize("name", get_args(PolicyName))
def test_no_policy_changes_what_comes_out_of_forks_when_memory_is_short(name: PolicyName) -> None:
    config = PolicyConfig(name, alpha_s=8.0, min_run_s=4.0)
    world = World(
        num_blocks=20,
        policy=config,
        profile=Profile.flat(2.0, 0.1),
        max_num_batched_tokens=16,
        max_model_len=64,
    )
    requests = [
        world.add(str(number), 3 + 5 * (number % 4), n=1 + number % 3, max_tokens=2 + 7 * number)
        for number in range(6)
    ]
    for _ in range(12):
        world.step()
    world.scheduler.cancel("5")
    world.run()
    for request in requests[:5]:
        for index in range(request.sampling.n):
            output = world.tokens[request.request_id, index]
            assert output == expected_output(request, index)


def test_an_unknown_policy_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'lifo'; allowed: fcfs, orca"):
        PolicyConfig("lifo")  # type: ignore[arg-type]


def test_under_priority_a_better_class_takes_the_place_of_what_runs() -> None:
    world = PolicyWorld(PolicyConfig("priority"))
    world.add("second class", 1, 5)
    world.step()
    world.add("first class", 1, 2, priority=-1)
    world.add("second class too", 1, 2)
    names = [world.step()[0] for _ in range(8)]
    assert names == ["first class"] * 2 + ["second class"] * 4 + ["second class too"] * 2


def test_fcfs_lets_a_better_class_wait_for_what_runs() -> None:
    world = PolicyWorld(PolicyConfig("fcfs"))
    world.add("second class", 1, 3)
    world.step()
    world.add("first class", 1, 2, priority=-1)
    assert [world.step()[0] for _ in range(3)] == ["second class"] * 2 + ["first class"]


def test_orca_reserves_what_a_sequence_may_come_to_need() -> None:
    world = PolicyWorld(PolicyConfig("orca"))
    world.add("a", 10, 20)
    # The last token's KV is never needed.
    assert world.policy.num_reserved_tokens(world.sequence("a")) == 29
    assert not world.policy.is_preemptive


def test_static_batching_starts_a_batch_when_the_last_one_has_ended() -> None:
    world = PolicyWorld(PolicyConfig("static"), max_num_seqs=2)
    for name, num_tokens in (("a", 4), ("b", 2), ("c", 1), ("d", 1)):
        world.add(name, 1, num_tokens)
    batches = [world.step() for _ in range(5)]
    assert batches == [["a", "b"], ["a", "b"], ["a"], ["a"], ["c", "d"]]


def test_edf_serves_the_next_deadline_first_and_those_without_last() -> None:
    world = PolicyWorld(EDF_CONFIG)
    world.add("none", 1, 1)
    world.add("none either", 1, 1)
    world.add("end to end", 1, 1, objectives=Objectives(e2e_s=30.0))
    world.add("timeout", 1, 1, timeout_s=20.0)
    world.add("first token", 1, 1, objectives=Objectives(ttft_s=10.0, e2e_s=99.0))
    names = [world.step()[0] for _ in range(5)]
    assert names == ["first token", "timeout", "end to end", "none", "none either"]


def test_edf_counts_tokens_from_the_objective_of_the_first() -> None:
    world = PolicyWorld(EDF_CONFIG)
    world.add("a", 1, 9, objectives=Objectives(ttft_s=10.0, tpot_s=2.0))
    sequence = world.sequence("a")
    assert sequence.rank[1] == 10.0
    world.step()
    assert sequence.rank[1] == 12.0
    world.step()
    assert sequence.rank[1] == 14.0
    assert world.policy.next_run_s(sequence, 11.0) == 3.0
    assert world.policy.next_run_s(sequence, 20.0) == 0.0


def test_edf_counts_tokens_from_the_first_if_nothing_was_asked_of_it() -> None:
    world = PolicyWorld(EDF_CONFIG)
    world.now = 5.0
    world.add("a", 1, 9, objectives=Objectives(tpot_s=2.0))
    sequence = world.sequence("a")
    assert sequence.rank[1] == float("inf")
    world.step()
    assert sequence.rank[1] == 8.0


def test_edf_lets_an_urgent_request_take_the_place_of_one_that_can_wait() -> None:
    world = PolicyWorld(EDF_CONFIG)
    world.add("can wait", 1, 4, objectives=Objectives(e2e_s=100.0))
    world.step()
    world.add("urgent", 1, 2, objectives=Objectives(e2e_s=5.0))
    world.add("more important", 1, 1, priority=-1)
    assert [world.step()[0] for _ in range(4)] == ["more important", *["urgent"] * 2, "can wait"]
