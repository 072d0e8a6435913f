"""What is in flight: requests and tokens by group, bounded, and zero when idle."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from fabric.core.errors import Overloaded
from fabric.router.policy import GroupLoad


class InflightLedger:
    """Counts requests from dispatch to end; entries are context managers, so none can leak."""

    def __init__(self, max_inflight: int) -> None:
        self._max_inflight = max_inflight
        self._num_inflight = 0
        self._requests: Counter[str] = Counter()
        self._tokens: Counter[str] = Counter()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def num_inflight(self) -> int:
        """Requests in this router, from admission on."""
        return self._num_inflight

    def num_requests(self, group: str) -> int:
        """Requests dispatched to a group."""
        return self._requests[group]

    def load(self, group: str) -> GroupLoad:
        """What has been dispatched to a group and not yet ended."""
        return GroupLoad(group, self._requests[group], self._tokens[group])

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Count a request while it is in this router.

        Raises:
            Overloaded: ``max_inflight`` requests are in flight already.
        """
        if self._num_inflight >= self._max_inflight:
            raise Overloaded(f"{self._max_inflight} requests are in flight, the most allowed", 1.0)
        self._num_inflight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._num_inflight -= 1
            if not self._num_inflight:
                self._idle.set()

    @contextmanager
    def dispatched(self, group: str, num_tokens: int) -> Iterator[None]:
        """Count a request's prompt and possible output tokens while a group has it."""
        self._requests[group] += 1
        self._tokens[group] += num_tokens
        try:
            yield
        finally:
            self._requests[group] -= 1
            self._tokens[group] -= num_tokens

    async def wait_idle(self, timeout_s: float) -> int:
        """Wait until nothing is in flight, or for ``timeout_s``; return what still is."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            pass
        return self._num_inflight
