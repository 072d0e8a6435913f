"""The two queues of a scheduler: who waits to run, and whose deadline comes next."""

from heapq import heapify, heappop, heappush

from fabric.scheduler.request import RequestState, SequenceState, SequenceStatus


class WaitingQueue:
    """Sequences that hold no blocks, lowest rank first."""

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[float, ...], int, SequenceState]] = []
        self._num_waiting = 0

    def __len__(self) -> int:
        return self._num_waiting

    def push(self, sequence: SequenceState) -> None:
        """Add a sequence at the place of its rank."""
        sequence.status = SequenceStatus.WAITING
        heappush(self._heap, (sequence.rank, sequence.key, sequence))
        self._num_waiting += 1

    def peek(self) -> SequenceState | None:
        """The sequence that goes first."""
        while self._heap and self._heap[0][2].status is not SequenceStatus.WAITING:
            heappop(self._heap)
        return self._heap[0][2] if self._heap else None

    def pop(self) -> SequenceState:
        """Take out the sequence that ``peek`` showed."""
        self._num_waiting -= 1
        return heappop(self._heap)[2]

    def discard(self, sequence: SequenceState) -> None:
        """Drop a sequence that ends while it waits, for good."""
        sequence.status = SequenceStatus.FINISHED
        self._num_waiting -= 1
        if len(self._heap) > 2 * self._num_waiting + 64:
            self._heap = [e for e in self._heap if e[2].status is SequenceStatus.WAITING]
            heapify(self._heap)


class DeadlineQueue:
    """Requests that have a deadline, the earliest first."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, RequestState]] = []

    def push(self, request: RequestState) -> None:
        """Watch a request's deadline, if it has one."""
        if request.deadline_s is not None:
            heappush(self._heap, (request.deadline_s, request.number, request))

    def pop_expired(self, now: float) -> list[RequestState]:
        """The live requests whose deadline has come."""
        expired = []
        while self._heap and self._heap[0][0] <= now:
            request = heappop(self._heap)[2]
            if request.unfinished:
                expired.append(request)
        return expired

    def trim(self, num_requests: int) -> None:
        """Forget ended requests if they are most of the queue."""
        if len(self._heap) > 2 * num_requests + 64:
            self._heap = [entry for entry in self._heap if entry[2].unfinished]
            heapify(self._heap)
