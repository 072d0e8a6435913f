"""Weights on their way to the device: iterations wait for what they need."""

import threading
from collections.abc import Callable

from fabric.core.errors import SourceError
from fabric.models.parameters import Parameters, WeightSource


class ArrivingWeights:
    """A source whose groups arrive in order, told by another thread than the one that waits.

    Source: ServerlessLLM (Fu et al., OSDI 2024), section 4; pipelined loading.
    """

    def __init__(self, source: WeightSource) -> None:
        self._source = source
        self._changed = threading.Condition()
        self._arrived: list[Callable[[], None]] = []
        self._failure = ""

    def group(self, index: int) -> Parameters:
        """Wait for a group.

        Raises:
            SourceError: It will not come.
        """
        with self._changed:
            self._changed.wait_for(lambda: len(self._arrived) > index or self._failure)
            if len(self._arrived) <= index:
                raise SourceError(f"weights did not reach the device: {self._failure}")
            wait = self._arrived[index]
        wait()
        return self._source.group(index)

    def arrive(self, wait: Callable[[], None]) -> None:
        """One more group is there for whoever has called ``wait``, which the host need not do."""
        with self._changed:
            self._arrived.append(wait)
            self._changed.notify_all()

    def fail(self, reason: str) -> None:
        """No more groups will come."""
        with self._changed:
            self._failure = self._failure or reason
            self._changed.notify_all()
