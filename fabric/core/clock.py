"""Time as a value that is passed in, so that deciding code can be replayed."""

import time
from typing import Protocol


class Clock(Protocol):
    """Tells the time."""

    def now(self) -> float:
        """Seconds on a clock that never goes backwards; its zero means nothing."""
        ...


class MonotonicClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        """Seconds since an arbitrary point."""
        return time.monotonic()


class VirtualClock:
    """A clock that moves only when told to, for tests and simulation."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s

    def now(self) -> float:
        """The virtual time in seconds."""
        return self._now_s

    def advance(self, seconds: float) -> None:
        """Move time forward by ``seconds``."""
        if seconds < 0:
            raise ValueError(f"cannot move time back by {-seconds} s")
        self._now_s += seconds
