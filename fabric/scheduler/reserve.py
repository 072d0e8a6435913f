"""How many blocks to keep free for requests that have not come yet."""

from math import ceil, exp, sqrt

_WINDOW_S = 10.0
_NUM_DEVIATIONS = 2.0
_LARGEST_SHARE = 0.25


class ArrivalReserve:
    """Blocks that new requests are likely to ask for within a time, from the recent past.

    Arrivals count less the older they are. Demand is taken as a compound Poisson process: its
    mean and its variance grow with time alike.

    Source: FastServe (Wu et al.), section 4.2, idle slots reserved from historical arrivals.
    """

    def __init__(self, num_blocks: int) -> None:
        self._most = int(num_blocks * _LARGEST_SHARE)
        self._rate = 0.0
        self._square_rate = 0.0
        self._last_s = 0.0

    def note(self, num_blocks: int, now: float) -> None:
        """Count a request that needs so many blocks at first."""
        self._age(now)
        self._rate += num_blocks / _WINDOW_S
        self._square_rate += num_blocks * num_blocks / _WINDOW_S

    def num_blocks(self, horizon_s: float, now: float) -> int:
        """The blocks to keep free so that arrivals within ``horizon_s`` need not wait."""
        self._age(now)
        spread = sqrt(self._square_rate * horizon_s)
        return min(ceil(self._rate * horizon_s + _NUM_DEVIATIONS * spread), self._most)

    def _age(self, now: float) -> None:
        weight = exp((self._last_s - now) / _WINDOW_S)
        self._rate *= weight
        self._square_rate *= weight
        self._last_s = now
