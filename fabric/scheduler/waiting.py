"""The two queues of a scheduler: who waits to run, and whose deadline comes next."""

from heapq import heapify, heappop, heappush

from fabric.scheduler.request import RequestState, SequenceState


class WaitingQueue:
    """Sequences that wait to come onto the device, lowest in order first.

    An entry counts as long as its sequence bears its ticket, so that leaving and changing
    place take no search.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[float, ...], int, SequenceState]] = []
        self._num_waiting = 0
        self._num_tickets = 0

    def __len__(self) -> int:
        return self._num_waiting

    def push(self, sequence: SequenceState) -> None:
        """Add a sequence at its place."""
        assert not sequence.ticket
        self._num_tickets += 1
        sequence.ticket = self._num_tickets
        heappush(self._heap, (sequence.order, sequence.ticket, sequence))
        self._num_waiting += 1

    def peek(self) -> SequenceState | None:
        """The sequence that goes first."""
        heap = self._heap
        while heap and heap[0][2].ticket != heap[0][1]:
            heappop(heap)
        return heap[0][2] if heap else None

    def remove(self, sequence: SequenceState) -> None:
        """Take a sequence out, wherever it is."""
        assert sequence.ticket
        sequence.ticket = 0
        self._num_waiting -= 1
        if len(self._heap) > 2 * self._num_waiting + 64:
            self._heap = [entry for entry in self._heap if entry[2].ticket == entry[1]]
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
        if not self._heap or self._heap[0][0] > now:
            return []
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
