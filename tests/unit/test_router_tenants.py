"""What each tenant may use."""

from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.core.errors import ConfigError, Overloaded
from fabric.router.tenants import TenantBuckets, TenantLimits

SLOW = TenantLimits(tokens_per_s=10, burst_tokens=100)


def run(buckets, num_tokens, now, used=None, tenant="acme"):
    """Admit a request that uses what it was charged, or as much as is said."""
    with buckets.admitted(tenant, now) as entry:
        entry.charge(num_tokens, now)
        entry.num_used = num_tokens if used is None else used


def test_a_tenant_may_use_its_burst_and_then_its_rate():
    buckets = TenantBuckets({"acme": SLOW}, TenantLimits())
    run(buckets, 100, 0.0)
    run(buckets, 20, 2.0)
    with pytest.raises(Overloaded):
        run(buckets, 20, 3.0)


def test_a_refusal_names_tenant_and_limit_and_tells_when_there_will_be_enough():
    buckets = TenantBuckets({"acme": SLOW}, TenantLimits())
    run(buckets, 90, 0.0)
    with pytest.raises(Overloaded, match="tenant 'acme' is over its tokens_per_s of 10") as caught:
        run(buckets, 50, 1.0)
    assert caught.value.retry_after_s == pytest.approx(3.0)
    run(buckets, 50, 4.0)


def test_what_was_charged_and_not_used_is_given_back():
    buckets = TenantBuckets({"acme": SLOW}, TenantLimits())
    run(buckets, 100, 0.0, used=30)
    run(buckets, 70, 0.0)


def test_what_was_used_beyond_the_charge_is_taken():
    buckets = TenantBuckets({"acme": SLOW}, TenantLimits())
    run(buckets, 10, 0.0, used=150)
    with pytest.raises(Overloaded) as caught:
        run(buckets, 1, 0.0)
    assert caught.value.retry_after_s == pytest.approx(5.1)


def test_a_request_larger_than_the_bucket_is_let_in_when_it_is_full():
    buckets = TenantBuckets({"acme": SLOW}, TenantLimits())
    run(buckets, 300, 0.0)
    with pytest.raises(Overloaded):
        run(buckets, 1, 20.0)
    run(buckets, 1, 20.1)


def test_a_tenant_has_so_many_requests_at_once_and_no_more():
    buckets = TenantBuckets({}, TenantLimits(max_inflight=2))
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(buckets.admitted("acme", 0.0))
        with (
            pytest.raises(Overloaded, match="'acme' has 2 requests in flight, its max_inflight"),
            buckets.admitted("acme", 0.0),
        ):
            raise AssertionError("three were admitted")
        run(buckets, 1, 0.0, tenant="other")
    run(buckets, 1, 0.0)
    assert buckets.num_inflight == 0


def test_tenants_do_not_use_up_each_others_tokens():
    buckets = TenantBuckets({}, SLOW)
    run(buckets, 100, 0.0, tenant="a")
    run(buckets, 100, 0.0, tenant="b")


def test_a_tenant_without_limits_is_not_remembered():
    buckets = TenantBuckets({}, TenantLimits())
    run(buckets, 10**9, 0.0)
    assert len(buckets) == 0


def test_a_full_bucket_is_forgotten_with_its_last_request():
    buckets = TenantBuckets({}, SLOW)
    with buckets.admitted("acme", 0.0):
        assert len(buckets) == 1
    assert len(buckets) == 0


def test_a_bucket_that_fills_up_is_forgotten_when_others_come():
    buckets = TenantBuckets({}, SLOW)
    run(buckets, 50, 0.0, tenant="a")
    run(buckets, 50, 10.0, tenant="b")
    assert len(buckets) == 1


def test_no_more_tenants_are_remembered_than_is_allowed():
    buckets = TenantBuckets({}, SLOW, max_tenants=3)
    for name in range(50):
        run(buckets, 50, 0.0, tenant=str(name))
    assert len(buckets) == 3


@pytest.mark.parametrize(
    "limits",
    [
        {"tokens_per_s": 0},
        {"tokens_per_s": float("nan")},
        {"tokens_per_s": 1, "burst_tokens": 0},
        {"burst_tokens": 5},
        {"max_inflight": 0},
    ],
)
def test_limits_that_let_nothing_through_are_refused(limits):
    with pytest.raises(ConfigError):
        TenantLimits(**limits)


steps = st.tuples(st.floats(0, 3), st.integers(1, 150), st.integers(0, 150))


@given(st.lists(steps, max_size=60))
def test_a_tenant_never_gets_more_than_its_burst_and_its_rate(requests):
    buckets = TenantBuckets({}, SLOW)
    now, used = 0.0, 0
    for wait_s, num_tokens, num_used in requests:
        now += wait_s
        num_used = min(num_used, num_tokens)
        try:
            run(buckets, num_tokens, now, num_used)
        except Overloaded:
            continue
        used += num_used
        # One that is larger than the bucket may overdraw it by as much as it is larger.
        assert used <= 100 + 10 * now + 50 + 1e-6
