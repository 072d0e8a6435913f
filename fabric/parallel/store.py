"""Keys and values of one epoch, and which members still give signs of life."""

import threading
import time
from collections.abc import Callable, Collection

from fabric.core.errors import GroupError, StaleEpoch

MAX_KEY_CHARS = 256
MAX_VALUE_BYTES = 2**20
MAX_KEYS = 4096


class EpochStore:
    """A key-value store for ranks that form groups, used by one thread for each connection.

    It serves one epoch at a time: raising the epoch forgets all keys and members, and a rank
    that comes with another epoch is refused, so that it can't disturb the new groups.
    """

    def __init__(self, epoch: int, silence_s: float, now: Callable[[], float] = time.monotonic):
        """Start empty.

        Args:
            epoch: The first.
            silence_s: A member that doesn't beat for so long is lost.
            now: The clock.
        """
        self._epoch = epoch
        self._silence_s = silence_s
        self._now = now
        self._values: dict[str, bytes] = {}
        self._last_beats: dict[str, float] = {}
        self._lost: set[str] = set()
        self._changed = threading.Condition()

    def raise_epoch(self, epoch: int) -> None:
        """Forget everything and refuse the ranks of earlier epochs; those waiting are woken.

        Raises:
            GroupError: The epoch isn't a later one.
        """
        with self._changed:
            if epoch <= self._epoch:
                raise GroupError(f"epoch {epoch} doesn't follow epoch {self._epoch}")
            self._epoch = epoch
            self._values.clear()
            self._last_beats.clear()
            self._lost.clear()
            self._changed.notify_all()

    def set(self, epoch: int, key: str, value: bytes) -> None:
        """Set a key's value."""
        with self._changed:
            self._check_epoch(epoch)
            self._store(key, value)

    def get(self, epoch: int, key: str, wait_s: float) -> bytes | None:
        """A key's value; None if nobody sets it in time."""
        deadline = self._now() + wait_s
        with self._changed:
            while True:
                self._check_epoch(epoch)
                remaining_s = deadline - self._now()
                if key in self._values or remaining_s <= 0:
                    return self._values.get(key)
                self._changed.wait(remaining_s)

    def add(self, epoch: int, key: str, amount: int) -> int:
        """Add to a number that starts at 0, kept as decimal text; return the sum."""
        with self._changed:
            self._check_epoch(epoch)
            value = self._values.get(key, b"0")
            if not value.removeprefix(b"-").isdigit():
                raise GroupError(f"{key!r} isn't a number")
            total = int(value) + amount
            self._store(key, str(total).encode())
            return total

    def delete(self, epoch: int, prefix: str) -> int:
        """Delete the keys that start so; return how many."""
        with self._changed:
            self._check_epoch(epoch)
            keys = [key for key in self._values if key.startswith(prefix)]
            for key in keys:
                del self._values[key]
            return len(keys)

    def beat(self, epoch: int, member: str) -> None:
        """Note a sign of life; one that is lost stays lost."""
        with self._changed:
            self._check_epoch(epoch)
            self._check_bounds(member, b"", self._last_beats)
            self._last_beats[member] = self._now()

    def leave(self, epoch: int, member: str) -> None:
        """Stop expecting signs of life."""
        with self._changed:
            self._check_epoch(epoch)
            self._last_beats.pop(member, None)

    def drop(self, epoch: int, member: str) -> None:
        """Count a member as lost, unless it has left or belongs to another epoch."""
        with self._changed:
            if epoch == self._epoch and member in self._last_beats:
                self._lost.add(member)

    def lost(self, epoch: int) -> list[str]:
        """The members that went without leaving, or were silent for too long."""
        with self._changed:
            self._check_epoch(epoch)
            limit = self._now() - self._silence_s
            self._lost.update(m for m, beat in self._last_beats.items() if beat < limit)
            return sorted(self._lost)

    def _store(self, key: str, value: bytes) -> None:
        self._check_bounds(key, value, self._values)
        self._values[key] = value
        self._changed.notify_all()

    def _check_epoch(self, epoch: int) -> None:
        if epoch != self._epoch:
            raise StaleEpoch(f"epoch {epoch} is not the current epoch, {self._epoch}")

    def _check_bounds(self, key: str, value: bytes, table: Collection[str]) -> None:
        if len(key) > MAX_KEY_CHARS or len(value) > MAX_VALUE_BYTES:
            raise GroupError(f"a key of {len(key)} characters or a value of {len(value)} bytes")
        if key not in table and len(table) >= MAX_KEYS:
            raise GroupError(f"more than {MAX_KEYS} keys in an epoch")
