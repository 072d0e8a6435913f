"""What the ranks of a gang say about moves of blocks and weights, put together."""

import threading
from collections.abc import Sequence
from dataclasses import replace

from fabric.core.errors import GroupError
from fabric.core.weights import WeightResult
from fabric.engine.executor import Finished
from fabric.kv.transfer import TransferResult

# Which part of which order: transfers and moves of weights number theirs each for themselves.
_Part = tuple[type[Finished], int, bool]


class GangTransfers:
    """Moves that every rank makes with its share of the blocks, or of the weights.

    One is finished when all ranks have finished it, and has failed when it failed on any. That a
    LOAD's first layers are there counts when all ranks have said so, unless it is over before.
    """

    def __init__(self, num_ranks: int) -> None:
        self._num_ranks = num_ranks
        self._changed = threading.Condition()
        self._parts: dict[_Part, list[Finished]] = {}
        self._finished: list[Finished] = []
        self._failure: GroupError | None = None

    def add(self, rank: int, results: Sequence[Finished]) -> None:
        """Take in what one rank has finished."""
        with self._changed:
            for result in results:
                if result.error:
                    result = replace(result, error=f"rank {rank}: {result.error}")
                self._add(result)

    def fail(self, error: GroupError) -> None:
        """Nothing more will come."""
        with self._changed:
            self._failure = error
            self._changed.notify()

    def take(self, timeout_s: float) -> list[Finished]:
        """What is finished now, or if that is nothing, within ``timeout_s``.

        Raises:
            GroupError: The gang can't go on.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._finished or self._failure, timeout_s)
            if self._failure is not None:
                raise self._failure
            finished, self._finished = self._finished, []
            return finished

    def _add(self, result: Finished) -> None:
        is_last = not isinstance(result, WeightResult) or result.is_last
        part = (type(result), result.number, is_last)
        self._parts.setdefault(part, []).append(result)
        if len(self._parts[part]) < self._num_ranks:
            return
        self._finished.append(_whole(self._parts.pop(part)))
        if is_last:
            # Ranks that failed have never said that they began.
            self._parts.pop((type(result), result.number, False), None)
        self._changed.notify()


def _whole(parts: Sequence[Finished]) -> Finished:
    """One result for all ranks: the first error, all bytes, the longest times."""
    first = parts[0]
    error = next((part.error for part in parts if part.error), "")
    num_bytes = sum(part.num_bytes for part in parts)
    if isinstance(first, WeightResult):
        seconds = max(part.seconds for part in parts if isinstance(part, WeightResult))
        return WeightResult(first.number, error, num_bytes, seconds, first.is_last)
    transfers = [part for part in parts if isinstance(part, TransferResult)]
    return TransferResult(
        first.number,
        error,
        num_bytes,
        max(part.queue_s for part in transfers),
        max(part.copy_s for part in transfers),
    )
