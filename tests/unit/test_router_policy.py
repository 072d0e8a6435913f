"""Which group a request goes to."""

from collections import Counter

from fabric.router.policy import GroupLoad, LeastLoaded, PowerOfTwoChoices, RoundRobin

GROUPS = (GroupLoad("a", 1, 300), GroupLoad("b", 5, 100), GroupLoad("c", 2, 200))


def test_the_group_with_the_fewest_tokens_is_the_least_loaded():
    assert LeastLoaded().choose(GROUPS) == "b"


def test_equals_go_to_the_one_with_fewer_requests_and_then_the_first():
    equal = (GroupLoad("a", 2, 7), GroupLoad("b", 1, 7), GroupLoad("c", 1, 7))
    assert LeastLoaded().choose(equal) == "b"


def test_round_robin_takes_turns():
    policy = RoundRobin()
    assert [policy.choose(GROUPS) for _ in range(4)] == ["a", "b", "c", "a"]


def test_two_choices_never_take_the_worst_of_three():
    policy = PowerOfTwoChoices(seed=1)
    chosen = Counter(policy.choose(GROUPS) for _ in range(300))
    assert chosen["a"] == 0
    assert chosen["b"] > chosen["c"] > 0


def test_two_choices_repeat_with_their_seed():
    first, second = PowerOfTwoChoices(seed=3), PowerOfTwoChoices(seed=3)
    assert [first.choose(GROUPS) for _ in range(20)] == [second.choose(GROUPS) for _ in range(20)]


def test_two_choices_live_with_one_group():
    assert PowerOfTwoChoices(seed=1).choose(GROUPS[:1]) == "a"
