"""How threads that copy keep out of the way of iterations, and how a slow link is emulated."""

import contextlib
import os
import threading
import time

# Where iterations need all processors, a copy thread gets a tenth of one.
NICENESS = 10


def give_way() -> None:
    """Let the calling thread run after those of iterations."""
    with contextlib.suppress(PermissionError):  # the process is even nicer
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


class CopyPace:
    """Lets copies begin no faster than ``max_bytes_per_s`` allows; None: at once.

    The link is one for all threads. A wait ends when ``closing`` is set.
    """

    def __init__(self, max_bytes_per_s: float | None, closing: threading.Event) -> None:
        self._max_bytes_per_s = max_bytes_per_s
        self._closing = closing
        self._lock = threading.Lock()
        self._free_at_s = 0.0

    def wait_for(self, num_bytes: int) -> None:
        """Wait as long as so many bytes take on the link, after those before them."""
        if self._max_bytes_per_s is None:
            return
        with self._lock:
            now_s = time.perf_counter()
            self._free_at_s = max(now_s, self._free_at_s) + num_bytes / self._max_bytes_per_s
            wait_s = self._free_at_s - now_s
        self._closing.wait(wait_s)
