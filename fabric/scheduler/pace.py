"""How fast requests end, so that a refused client knows when to come back."""

_SHARE_OF_NEWEST = 0.1
_UNKNOWN_S = 1.0
_SHORTEST_S = 0.1
_LONGEST_S = 60.0


class Pace:
    """A moving average of the time between the ends of requests."""

    def __init__(self) -> None:
        self._last_s: float | None = None
        self._gap_s: float | None = None

    def note_end(self, now: float) -> None:
        """Count a request that ended."""
        if self._last_s is not None:
            gap_s = now - self._last_s
            mean_s = gap_s if self._gap_s is None else self._gap_s
            self._gap_s = mean_s + _SHARE_OF_NEWEST * (gap_s - mean_s)
        self._last_s = now

    def time_for_s(self, num_requests: int) -> float:
        """Seconds until so many more requests have ended, within sensible bounds."""
        if self._gap_s is None:
            return _UNKNOWN_S
        return min(max(self._gap_s * num_requests, _SHORTEST_S), _LONGEST_S)
