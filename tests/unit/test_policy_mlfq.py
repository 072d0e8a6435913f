import pytest

from fabric.core.errors import ConfigError
from fabric.core.profile import Profile
from fabric.scheduler.mlfq import MLFQ
from fabric.scheduler.policies import PolicyConfig
from fabric.scheduler.quanta import Quanta
from tests.unit.policy_world import SECONDS, PolicyWorld

PATIENT = PolicyConfig("mlfq", alpha_s=1e6)
FIXED = PolicyConfig("mlfq", alpha_s=10.0, alpha_load=0.0)


def mlfq(world: PolicyWorld) -> MLFQ:
    assert isinstance(world.policy, MLFQ)
    return world.policy


def level(world: PolicyWorld, name: str) -> int | None:
    return world.policy.level(world.sequence(name))


def test_quanta_start_with_the_shortest_iteration_and_double() -> None:
    quanta = Quanta.geometric(0.5, 2.0)
    assert quanta.quanta_s[:4] == (0.5, 1.0, 2.0, 4.0)
    assert quanta.until_s[:4] == (0.0, 0.5, 1.5, 3.5)
    assert quanta.level_for(1.0) == 1
    assert quanta.level_for(1.1) == 2
    assert quanta.level_for(1e9) == quanta.last


@pytest.mark.parametrize(("num_prompt", "joined"), [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (9, 4)])
def test_a_request_joins_the_first_queue_whose_quantum_holds_its_prefill(
    num_prompt: int, joined: int
) -> None:
    world = PolicyWorld(PATIENT)
    world.add("a", num_prompt, 2)
    assert level(world, "a") == joined


def test_in_naive_mlfq_all_join_the_first_queue_and_sink_by_one() -> None:
    world = PolicyWorld(PolicyConfig("naive_mlfq", alpha_s=1e6))
    world.add("a", 9, 9)
    levels = [level(world, "a")]
    for _ in range(4):
        world.step()
        levels.append(level(world, "a"))
    # 9 s, then one second each: the second queue lasts 2 s, the third 4 s.
    assert levels == [0, 1, 1, 2, 2]


def test_a_sequence_sinks_only_when_its_quantum_is_used_up() -> None:
    world = PolicyWorld(PATIENT)
    world.add("a", 1, 20)
    levels = []
    for _ in range(7):
        world.step()
        levels.append(level(world, "a"))
    assert levels == [1, 1, 2, 2, 2, 2, 3]


def test_a_sequence_sinks_to_a_queue_that_holds_its_next_iteration() -> None:
    # A decode takes five seconds as soon as there is some context.
    profile = Profile(((1, 1.0), (2, 2.0)), ((1, 1, 1.0), (1, 2, 5.0)))
    world = PolicyWorld(PATIENT, profile)
    world.add("a", 1, 4)
    world.step()
    assert level(world, "a") == 3


def test_the_rest_of_a_chunked_prompt_counts_as_the_next_iteration() -> None:
    world = PolicyWorld(PATIENT)
    world.add("a", 100, 4)
    assert level(world, "a") == 7
    sequence = world.sequence("a")
    sequence.num_computed_tokens = 64
    assert mlfq(world).note_run(sequence, 128.0, 128.0)[1] == 8
    assert mlfq(world)._next_iteration_s(sequence) == 36.0


def test_within_a_queue_who_came_to_it_first_runs_first() -> None:
    world = PolicyWorld(PATIENT)
    for name in "abc":
        world.add(name, 1, 3)
    order = [world.step()[0] for _ in range(9)]
    # The second queue lasts two iterations, so nobody is interrupted in it.
    assert order == list("abc") + list("aabbcc")


def test_priority_classes_outrank_queues() -> None:
    world = PolicyWorld(PATIENT)
    world.add("first class", 9, 3, priority=-1)
    world.add("second class", 1, 3)
    assert [world.step()[0] for _ in range(4)] == ["first class"] * 3 + ["second class"]


def test_who_waits_longer_than_alpha_starts_again_before_those_that_came_since() -> None:
    world = PolicyWorld(FIXED)
    world.add("long", 40, 9)
    joined = level(world, "long")
    while world.now < 10.0:
        assert level(world, "long") == joined
        world.add(f"short {world.now}", 1, 1)
        assert world.step() != ["long"]
    world.add("newest", 1, 1)
    assert world.step() == ["long"]
    # Its quantum was a new one, and its prefill used it up.
    assert level(world, "long") == 1


def test_a_promoted_sequence_that_still_waits_keeps_its_place() -> None:
    world = PolicyWorld(FIXED)
    world.add("a", 3, 9)
    policy, sequence = mlfq(world), world.sequence("a")
    assert policy.promote(9.0) == []
    (promoted,) = policy.promote(10.0)
    assert promoted == (sequence, (0, 0, 0.0, 1, 0))
    assert policy.promote(10.0) == []
    assert policy.promote(21.0) == []
    assert policy.level(sequence) == 0


def test_running_puts_promotion_off() -> None:
    world = PolicyWorld(FIXED)
    world.add("a", 3, 9)
    policy, sequence = mlfq(world), world.sequence("a")
    sequence.rank = policy.note_run(sequence, 1.0, 9.0)
    assert policy.promote(18.0) == []
    assert len(policy.promote(19.0)) == 1


def test_next_run_is_promotion_or_when_all_in_better_queues_have_sunk() -> None:
    world = PolicyWorld(FIXED, max_num_seqs=2)
    world.add("two in the third queue", 4, 1)
    world.add("same queue", 4, 1)
    world.add("first queue", 1, 1)
    world.add("second queue", 2, 1)
    sequence = world.sequence("two in the third queue")
    # (1 + 2) s from the first queue and 2 s from the second, two at a time.
    assert world.policy.next_run_s(sequence, 0.0) == 2.5
    assert world.policy.next_run_s(sequence, 9.0) == 1.0
    assert world.policy.next_run_s(sequence, 99.0) == 0.0
    assert world.policy.next_run_s(world.sequence("first queue"), 0.0) == 0.0


def test_next_run_lets_a_better_class_sink_through_the_sequences_own_queue() -> None:
    world = PolicyWorld(PATIENT)
    world.add("second class", 2, 1)
    world.add("first class", 1, 1, priority=-1)
    assert world.policy.next_run_s(world.sequence("second class"), 0.0) == 3.0
    assert world.policy.next_run_s(world.sequence("first class"), 0.0) == 0.0


def test_alpha_grows_with_the_time_that_requests_stay() -> None:
    world = PolicyWorld(PolicyConfig("mlfq", alpha_s=2.0, alpha_load=1.5))
    assert mlfq(world).alpha_s == 2.0
    for number in range(30):
        world.add(str(number), 1, 4)
    world.run()
    assert mlfq(world).alpha_s == pytest.approx(1.5 * sum(world.ends.values()) / 30)
    for number in range(500):
        world.add(f"alone {number}", 1, 1)
        world.step()
    assert mlfq(world).alpha_s == 2.0


def test_a_fixed_alpha_stays() -> None:
    for config in (FIXED, PolicyConfig("naive_mlfq", alpha_s=10.0, alpha_load=9.0)):
        world = PolicyWorld(config)
        for number in range(30):
            world.add(str(number), 1, 4)
        world.run()
        assert mlfq(world).alpha_s == 10.0


def test_a_fork_joins_by_its_next_decode() -> None:
    world = PolicyWorld(PATIENT, max_num_seqs=2)
    request = world.add("a", 3, 2)
    parent = world.sequence("a")
    world.step()
    child = parent.fork(99, 1)
    assert mlfq(world).enroll(child, world.now) == (0, 0, world.now, 1, 1)
    assert request.sampling.n == 1


def test_nothing_is_kept_of_sequences_that_left() -> None:
    world = PolicyWorld(PATIENT, max_num_seqs=2)
    for number in range(9):
        world.add(str(number), 1 + number, 3, priority=number % 3)
    world.step()
    world.scheduler.cancel("8")
    world.run()
    assert not mlfq(world)._places
    assert not mlfq(world)._num_at


def test_quanta_come_from_the_profile_unless_they_are_given() -> None:
    for quantum_s, joined in ((None, 2), (2.0, 1), (4.0, 0)):
        world = PolicyWorld(PolicyConfig("mlfq", quantum_s=quantum_s), SECONDS)
        world.add("a", 4, 1)
        assert level(world, "a") == joined


@pytest.mark.parametrize(
    ("field", "value"), [("quantum_s", 0.0), ("quantum_ratio", 1.0), ("alpha_s", -1.0)]
)
def test_numbers_that_make_no_queues_are_refused(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=field):
        PolicyConfig("mlfq", **{field: value})  # type: ignore[arg-type]
