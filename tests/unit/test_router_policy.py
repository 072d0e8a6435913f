"""Which group a request goes to."""

from collections import Counter

import pytest

from fabric.router.forecast import Forecast
from fabric.router.policy import (
    Candidate,
    LeastLoaded,
    PowerOfTwoChoices,
    PredictedFinish,
    RoundRobin,
    new_policy,
)

GROUPS = (Candidate("a", 1, 300), Candidate("b", 5, 100), Candidate("c", 2, 200))


def predicted(group, e2e_s, num_tokens=0, num_prefix_blocks=0):
    return Candidate(group, 1, num_tokens, num_prefix_blocks, Forecast(0.0, 0.0, e2e_s))


def test_the_group_with_the_fewest_tokens_is_the_least_loaded():
    assert LeastLoaded().choose(GROUPS).group == "b"


def test_equals_go_to_the_one_with_fewer_requests_and_then_the_first():
    equal = (Candidate("a", 2, 7), Candidate("b", 1, 7), Candidate("c", 1, 7))
    assert LeastLoaded().choose(equal).group == "b"


def test_round_robin_takes_turns():
    policy = RoundRobin()
    assert [policy.choose(GROUPS).group for _ in range(4)] == ["a", "b", "c", "a"]


def test_two_choices_never_take_the_worst_of_three():
    policy = PowerOfTwoChoices(seed=1)
    chosen = Counter(policy.choose(GROUPS).group for _ in range(300))
    assert chosen["a"] == 0
    assert chosen["b"] > chosen["c"] > 0


def test_two_choices_repeat_with_their_seed():
    first, second = PowerOfTwoChoices(seed=3), PowerOfTwoChoices(seed=3)
    assert [first.choose(GROUPS) for _ in range(20)] == [second.choose(GROUPS) for _ in range(20)]


def test_two_choices_live_with_one_group():
    assert PowerOfTwoChoices(seed=1).choose(GROUPS[:1]).group == "a"


def test_the_group_that_is_predicted_to_finish_first_is_chosen_whatever_its_tokens():
    candidates = (predicted("a", 2.0, num_tokens=1), predicted("b", 1.0, num_tokens=9))
    assert PredictedFinish().choose(candidates).group == "b"


def test_of_groups_that_finish_together_the_one_with_the_longest_prefix_is_chosen():
    candidates = (
        predicted("a", 1.00, num_tokens=1, num_prefix_blocks=1),
        predicted("b", 1.02, num_tokens=9, num_prefix_blocks=3),
        predicted("c", 1.10, num_tokens=0, num_prefix_blocks=8),
    )
    assert PredictedFinish().choose(candidates).group == "b"


def test_of_groups_that_finish_together_and_know_no_prefix_the_least_loaded_is_chosen():
    candidates = (predicted("a", 0.0100, num_tokens=5), predicted("b", 0.0109, num_tokens=4))
    assert PredictedFinish().choose(candidates).group == "b"


def test_where_one_group_was_not_measured_the_least_loaded_is_chosen():
    candidates = (predicted("a", 1.0, num_tokens=5), Candidate("b", 1, 4))
    assert PredictedFinish().choose(candidates).group == "b"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("predicted", PredictedFinish),
        ("least_loaded", LeastLoaded),
        ("power_of_two", PowerOfTwoChoices),
        ("round_robin", RoundRobin),
    ],
)
def test_every_routing_policy_has_its_name(name, kind):
    assert type(new_policy(name, seed=1)) is kind
