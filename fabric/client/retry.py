"""When a failed call is tried again."""

import asyncio
import random
from dataclasses import dataclass

from fabric.core.clock import Clock, MonotonicClock
from fabric.core.errors import RequestError, Unavailable


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff; a call is tried again only on ``Unavailable``.

    A stream is never tried again once it delivered a token. ``max_attempts`` 1 never retries.
    """

    max_attempts: int = 4
    initial_backoff_s: float = 0.1
    max_backoff_s: float = 2.0
    multiplier: float = 2.0
    jitter: float = 0.2

    def backoff_s(self, num_attempts: int, draw: float) -> float:
        """Seconds to wait after ``num_attempts`` failures; ``draw`` in [0, 1) picks the jitter.

        Source: gRFC A6, gRPC retry design: backoff times 0.8 to 1.2.
        """
        growth = self.initial_backoff_s * self.multiplier ** (num_attempts - 1)
        return min(growth, self.max_backoff_s) * (1 + self.jitter * (2 * draw - 1))


class Attempts:
    """The attempts of one call: how much of its deadline is left, and whether to go on."""

    def __init__(
        self, policy: RetryPolicy, timeout_s: float | None, clock: Clock | None = None
    ) -> None:
        self._policy = policy
        self._clock = clock or MonotonicClock()
        self._deadline_s = None if timeout_s is None else self._clock.now() + timeout_s
        self._num_failed = 0

    def remaining_s(self) -> float | None:
        """What is left of the deadline, at least 0; None without a deadline."""
        if self._deadline_s is None:
            return None
        return max(self._deadline_s - self._clock.now(), 0.0)

    async def wait(self, error: RequestError) -> None:
        """Wait before the next attempt, at least as long as the server asked for.

        Raises:
            RequestError: ``error`` itself, if there must be no further attempt: it is not
                ``Unavailable``, the attempts are used up, or the deadline would pass first.
        """
        self._num_failed += 1
        if not isinstance(error, Unavailable) or self._num_failed >= self._policy.max_attempts:
            raise error
        backoff_s = self._policy.backoff_s(self._num_failed, random.random())
        delay_s = max(backoff_s, error.retry_after_s or 0.0)
        remaining_s = self.remaining_s()
        if remaining_s is not None and delay_s >= remaining_s:
            raise error
        await asyncio.sleep(delay_s)
