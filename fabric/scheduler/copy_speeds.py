"""How long copies between the device and a tier take, as measured lately."""

from math import isfinite

from fabric.core.profile import Profile
from fabric.kv.transfer import Direction, Tier, Transfer, TransferResult

_SHARE_OF_NEWEST = 0.2
# Until the first transfer, if nobody has profiled the link: slower than any host memory's.
_UNKNOWN_BYTES_PER_S = 1e9


class CopySpeeds:
    """Bytes a second for each tier and direction: the profile's at first, then what is measured.

    Several transfers share one copy engine, so a transfer also waits for those begun before it.
    """

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._measured: dict[tuple[Tier, Direction], float] = {}

    def note(self, transfer: Transfer, result: TransferResult) -> None:
        """Count a finished transfer."""
        if result.num_bytes and result.copy_s > 0.0:
            way = (transfer.tier, transfer.direction)
            speed = result.num_bytes / result.copy_s
            before = self._measured.get(way, speed)
            self._measured[way] = before + _SHARE_OF_NEWEST * (speed - before)

    def copy_s(self, tier: Tier, direction: Direction, num_bytes: int) -> float:
        """Seconds that a copy takes once it is its turn."""
        speed = self._measured.get((tier, direction))
        if speed is not None:
            return num_bytes / speed
        profiled_s = self._profile.copy_s(tier, direction, num_bytes)
        return profiled_s if isfinite(profiled_s) else num_bytes / _UNKNOWN_BYTES_PER_S
