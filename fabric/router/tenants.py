"""What each tenant may have: tokens a second, and requests at once; no clock, no event loop."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from fabric.core.errors import ConfigError, Overloaded

MAX_TENANTS = 4096
# A tenant that gives only a rate may save up so many seconds of it.
DEFAULT_BURST_S = 10.0
RETRY_AFTER_S = 1.0


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """What one tenant may use of one router; None: no limit.

    ``tokens_per_s`` of prompts and outputs flow into its bucket, which holds ``burst_tokens`` (by
    default, ten seconds' worth). A request that is larger than the bucket is let in when it is
    full, and what it took is waited for afterwards. ``max_inflight`` requests may run at once.

    Raises:
        ConfigError: A limit is not positive, or there is a burst without a rate.
    """

    tokens_per_s: float | None = None
    burst_tokens: int | None = None
    max_inflight: int | None = None

    def __post_init__(self) -> None:
        if self.tokens_per_s is not None and not 0 < self.tokens_per_s < float("inf"):
            raise ConfigError(f"tokens_per_s: {self.tokens_per_s} is no positive rate")
        if self.burst_tokens is not None and (self.tokens_per_s is None or self.burst_tokens < 1):
            raise ConfigError(
                f"burst_tokens: {self.burst_tokens} needs to be 1 or more, and a rate"
            )
        if self.max_inflight is not None and self.max_inflight < 1:
            raise ConfigError(f"max_inflight: {self.max_inflight} is not 1 or more")

    @property
    def is_limited(self) -> bool:
        """Whether there is any limit."""
        return self.tokens_per_s is not None or self.max_inflight is not None

    @property
    def burst(self) -> float:
        """What a full bucket holds, in tokens; 0 without a rate."""
        if self.tokens_per_s is None:
            return 0.0
        return self.burst_tokens or max(1.0, DEFAULT_BURST_S * self.tokens_per_s)


class _Bucket:
    """One tenant's tokens, as of the last time that anybody looked, and its requests."""

    __slots__ = ("level", "limits", "num_inflight", "seen_s")

    def __init__(self, limits: TenantLimits, now: float) -> None:
        self.limits = limits
        self.level = limits.burst
        self.seen_s = now
        self.num_inflight = 0

    def refill(self, now: float) -> None:
        limits = self.limits
        if limits.tokens_per_s is not None:
            grown = self.level + max(0.0, now - self.seen_s) * limits.tokens_per_s
            self.level = min(limits.burst, grown)
        self.seen_s = now

    @property
    def is_forgettable(self) -> bool:
        """Whether a new bucket would be just like it."""
        return self.num_inflight == 0 and self.level >= self.limits.burst


class TenantEntry:
    """A request's place with its tenant: what it was charged, and what it really used."""

    __slots__ = ("_bucket", "_charged", "_tenant", "num_used")

    def __init__(self, tenant: str, bucket: _Bucket | None) -> None:
        self._tenant = tenant
        self._bucket = bucket
        self._charged = 0
        self.num_used = 0

    def charge(self, num_tokens: int, now: float) -> None:
        """Take from the bucket what the request is expected to use.

        Raises:
            Overloaded: There is too little; tells after how long there will be enough.
        """
        bucket = self._bucket
        if bucket is None or bucket.limits.tokens_per_s is None:
            return
        bucket.refill(now)
        needed = min(float(num_tokens), bucket.limits.burst)
        if bucket.level < needed:
            raise _too_fast(self._tenant, bucket, needed)
        bucket.level -= num_tokens
        self._charged += num_tokens

    def settle(self) -> None:
        """Give back what was charged and not used, or take what was used beyond it."""
        if self._bucket is not None and self._bucket.limits.tokens_per_s is not None:
            self._bucket.level += self._charged - self.num_used


class TenantBuckets:
    """Token buckets by tenant, refilled whenever they are looked at.

    At most ``max_tenants`` are remembered. A bucket that is full and has nothing in flight is
    forgotten, since a new one would be no different.

    Source: the token bucket of RFC 2697, with one rate.
    """

    def __init__(
        self,
        limits: Mapping[str, TenantLimits],
        default: TenantLimits,
        max_tenants: int = MAX_TENANTS,
    ) -> None:
        self._limits = dict(limits)
        self._default = default
        self._max_tenants = max_tenants
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    @property
    def num_inflight(self) -> int:
        """Requests of all tenants that have a limit."""
        return sum(bucket.num_inflight for bucket in self._buckets.values())

    @contextmanager
    def admitted(self, tenant: str, now: float) -> Iterator[TenantEntry]:
        """Count a request of a tenant while it is in the router; settles its tokens at the end.

        Raises:
            Overloaded: The tenant has as many requests as it may, or its bucket is empty.
        """
        limits = self._limits.get(tenant, self._default)
        if not limits.is_limited:
            yield TenantEntry(tenant, None)
            return
        bucket = self._bucket(tenant, limits, now)
        _check(tenant, bucket)
        entry = TenantEntry(tenant, bucket)
        bucket.num_inflight += 1
        try:
            yield entry
        finally:
            bucket.num_inflight -= 1
            entry.settle()
            if bucket.is_forgettable and self._buckets.get(tenant) is bucket:
                del self._buckets[tenant]

    def _bucket(self, tenant: str, limits: TenantLimits, now: float) -> _Bucket:
        bucket = self._buckets.get(tenant)
        if bucket is None:
            self._make_room(now)
            bucket = self._buckets[tenant] = _Bucket(limits, now)
        self._buckets.move_to_end(tenant)
        bucket.refill(now)
        return bucket

    def _make_room(self, now: float) -> None:
        """Forget the tenant that was seen longest ago if it has become full, or must go.

        One with requests in flight goes, too, if all have: it is counted on, but not found again.
        """
        if not self._buckets:
            return
        oldest, bucket = next(iter(self._buckets.items()))
        bucket.refill(now)
        if bucket.is_forgettable or len(self._buckets) >= self._max_tenants:
            del self._buckets[oldest]


def _check(tenant: str, bucket: _Bucket) -> None:
    most = bucket.limits.max_inflight
    if most is not None and bucket.num_inflight >= most:
        allowed = f"tenant {tenant!r} has {most} requests in flight, its max_inflight"
        raise Overloaded(allowed, RETRY_AFTER_S)
    if bucket.limits.tokens_per_s is not None and bucket.level < 1.0:
        raise _too_fast(tenant, bucket, 1.0)


def _too_fast(tenant: str, bucket: _Bucket, needed: float) -> Overloaded:
    rate = bucket.limits.tokens_per_s
    assert rate is not None
    return Overloaded(
        f"tenant {tenant!r} is over its tokens_per_s of {rate:g}: {needed:.0f} tokens are needed, "
        f"{max(0.0, bucket.level):.0f} are left",
        (needed - bucket.level) / rate,
    )
