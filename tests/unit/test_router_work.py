"""What is dispatched is counted until it ends, and leaves nothing behind."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.router.forecast import Demand, ModelWork
from fabric.router.work import DispatchedWork


def test_the_work_shrinks_as_tokens_come():
    work = DispatchedWork()
    with work.entry("left", Demand("a", 100, 10, num_sequences=2)) as entry:
        assert work.of("left") == {"a": ModelWork(1, 2, 1, 100, 20, 200)}
        entry.note_tokens(2)
        assert work.of("left") == {"a": ModelWork(1, 2, 0, 0, 18, 202)}
        assert (work.num_requests("left"), work.num_tokens("left")) == (1, 18)


def test_an_output_longer_than_expected_leaves_no_negative_work():
    work = DispatchedWork()
    with work.entry("left", Demand("a", 100, 10)) as entry:
        entry.note_tokens(25)
        assert work.num_tokens("left") == 0


def test_nothing_is_left_of_a_request_that_fails():
    work = DispatchedWork()
    with pytest.raises(KeyError), work.entry("left", Demand("a", 100, 10), is_cold=True):
        raise KeyError("boom")
    assert (work.groups, work.num_waiting_cold("a")) == ((), 0)


demands = st.builds(
    Demand, st.sampled_from("ab"), st.integers(1, 99), st.integers(1, 20), st.integers(1, 3)
)
# What becomes of the requests in flight: one more, tokens for one, or one ends.
moves = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["left", "right"]), demands, st.booleans()),
        st.tuples(st.integers(0, 9), st.integers(1, 30)),
        st.integers(0, 9),
    ),
    max_size=60,
)


@given(moves)
def test_however_requests_come_and_go_the_counts_fit_those_in_flight(moves):
    work = DispatchedWork()
    live = []
    for move in moves:
        match move:
            case (str() as group, asked, is_cold):
                context = work.entry(group, asked, is_cold)
                live.append((context, context.__enter__(), group))
            case (place, count) if live:
                live[place % len(live)][1].note_tokens(count)
            case int() as place if live:
                live.pop(place % len(live))[0].__exit__(None, None, None)
        for group in ("left", "right"):
            assert work.num_requests(group) == sum(it[2] == group for it in live)
            for counted in work.of(group).values():
                assert min(counted.num_queued, counted.prompt_tokens, counted.output_tokens) >= 0
                assert counted.num_queued <= counted.num_requests > 0
    for context, _, _ in live:
        context.__exit__(None, None, None)
    assert work.groups == ()
    assert (work.num_waiting_cold("a"), work.num_waiting_cold("b")) == (0, 0)
