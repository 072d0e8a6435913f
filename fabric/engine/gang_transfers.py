"""What the ranks of a gang say about transfers, put together."""

import threading
from collections.abc import Sequence
from dataclasses import replace

from fabric.core.errors import GroupError
from fabric.kv.transfer import TransferResult


class GangTransfers:
    """Transfers that every rank makes with its share of the blocks.

    One is finished when all ranks have finished it, and has failed when it failed on any.
    """

    def __init__(self, num_ranks: int) -> None:
        self._num_ranks = num_ranks
        self._changed = threading.Condition()
        self._parts: dict[int, list[TransferResult]] = {}
        self._finished: list[TransferResult] = []
        self._failure: GroupError | None = None

    def add(self, rank: int, results: Sequence[TransferResult]) -> None:
        """Take in what one rank has finished."""
        with self._changed:
            for result in results:
                if result.error:
                    result = replace(result, error=f"rank {rank}: {result.error}")
                parts = self._parts.setdefault(result.number, [])
                parts.append(result)
                if len(parts) == self._num_ranks:
                    self._finished.append(_whole(self._parts.pop(result.number)))
                    self._changed.notify()

    def fail(self, error: GroupError) -> None:
        """Nothing more will come."""
        with self._changed:
            self._failure = error
            self._changed.notify()

    def take(self, timeout_s: float) -> list[TransferResult]:
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


def _whole(parts: Sequence[TransferResult]) -> TransferResult:
    """One result for all ranks: the first error, all bytes, the longest times."""
    return TransferResult(
        parts[0].number,
        next((part.error for part in parts if part.error), ""),
        sum(part.num_bytes for part in parts),
        max(part.queue_s for part in parts),
        max(part.copy_s for part in parts),
    )
