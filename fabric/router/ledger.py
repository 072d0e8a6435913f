"""What is in flight: requests of this router, and their work by group; bounded, zero when idle."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from fabric.core.errors import Overloaded
from fabric.router.forecast import Demand
from fabric.router.work import DispatchedWork, WorkEntry


class InflightLedger:
    """Counts requests from dispatch to end; entries are context managers, so none can leak."""

    def __init__(self, max_inflight: int) -> None:
        self._max_inflight = max_inflight
        self._num_inflight = 0
        self._ended = asyncio.Event()
        self.work = DispatchedWork()

    @property
    def num_inflight(self) -> int:
        """Requests in this router, from admission on."""
        return self._num_inflight

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Count a request while it is in this router.

        Raises:
            Overloaded: ``max_inflight`` requests are in flight already.
        """
        if self._num_inflight >= self._max_inflight:
            raise Overloaded(f"{self._max_inflight} requests are in flight, the most allowed", 1.0)
        self._num_inflight += 1
        try:
            yield
        finally:
            self._num_inflight -= 1
            self._ended.set()

    @contextmanager
    def dispatched(self, group: str, demand: Demand, is_cold: bool) -> Iterator[WorkEntry]:
        """Count a request's tokens while a group has it; fewer and fewer, as outputs come."""
        try:
            with self.work.entry(group, demand, is_cold) as entry:
                yield entry
        finally:
            self._ended.set()

    async def wait_idle(self, group: str, timeout_s: float) -> int:
        """Wait until nothing is in flight, or for ``timeout_s``; return what still is.

        Args:
            group: Look at this group's requests; at all of the router's if empty.
            timeout_s: How long to wait.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while self._num_in(group):
                    self._ended.clear()
                    await self._ended.wait()
        except TimeoutError:
            pass
        return self._num_in(group)

    def _num_in(self, group: str) -> int:
        return self.work.num_requests(group) if group else self._num_inflight
