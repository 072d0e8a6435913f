"""Backoff, and what may be tried again."""

import pytest

from fabric.client.retry import Attempts, RetryPolicy
from fabric.core.clock import VirtualClock
from fabric.core.errors import InternalError, Unavailable


def test_backoff_doubles_up_to_its_bound():
    policy = RetryPolicy(initial_backoff_s=0.1, max_backoff_s=0.5, jitter=0.2)
    assert [policy.backoff_s(n, 0.5) for n in (1, 2, 3, 4)] == pytest.approx([0.1, 0.2, 0.4, 0.5])


def test_jitter_spreads_the_backoff_around_its_mean():
    policy = RetryPolicy(initial_backoff_s=1.0, jitter=0.2)
    assert policy.backoff_s(1, 0.0) == pytest.approx(0.8)
    assert policy.backoff_s(1, 1.0) == pytest.approx(1.2)


def test_all_attempts_share_one_deadline():
    clock = VirtualClock()
    attempts = Attempts(RetryPolicy(), 2.0, clock)
    clock.advance(1.5)
    assert attempts.remaining_s() == pytest.approx(0.5)
    clock.advance(1.5)
    assert attempts.remaining_s() == 0.0


def test_without_a_deadline_nothing_remains_to_count():
    assert Attempts(RetryPolicy(), None).remaining_s() is None


async def test_other_errors_are_raised_at_once():
    error = InternalError("bug")
    with pytest.raises(InternalError) as raised:
        await Attempts(RetryPolicy(), None).wait(error)
    assert raised.value is error


async def test_a_wait_beyond_the_deadline_raises_at_once():
    attempts = Attempts(RetryPolicy(), 1.0, VirtualClock())
    with pytest.raises(Unavailable):
        await attempts.wait(Unavailable("loading", retry_after_s=1.0))


async def test_the_last_attempts_error_is_raised():
    attempts = Attempts(RetryPolicy(max_attempts=2, initial_backoff_s=0.0), None)
    await attempts.wait(Unavailable("first"))
    with pytest.raises(Unavailable, match="second"):
        await attempts.wait(Unavailable("second"))
