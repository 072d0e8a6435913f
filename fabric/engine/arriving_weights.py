"""Weights on their way to the device: iterations wait for what they need."""

import threading

from fabric.core.errors import SourceError
from fabric.models.parameters import Parameters, WeightSource


class ArrivingWeights:
    """A source whose groups arrive in order, told by another thread than the one that waits.

    Source: ServerlessLLM (Fu et al., OSDI 2024), section 4; pipelined loading.
    """

    def __init__(self, source: WeightSource) -> None:
        self._source = source
        self._changed = threading.Condition()
        self._num_arrived = 0
        self._failure = ""

    def group(self, index: int) -> Parameters:
        """Wait for a group.

        Raises:
            SourceError: It will not come.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._num_arrived > index or self._failure)
            if self._num_arrived <= index:
                raise SourceError(f"weights did not reach the device: {self._failure}")
        return self._source.group(index)

    def arrive(self) -> None:
        """One more group is there."""
        with self._changed:
            self._num_arrived += 1
            self._changed.notify_all()

    def fail(self, reason: str) -> None:
        """No more groups will come."""
        with self._changed:
            self._failure = self._failure or reason
            self._changed.notify_all()
