"""What has been dispatched to groups and not seen end, by model; zero when idle."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from fabric.router.forecast import Demand, ModelWork

_NOTHING: Mapping[str, ModelWork] = {}


class WorkEntry:
    """One dispatched request: what it adds to its group's work, less and less as tokens come."""

    __slots__ = ("_cold", "_context", "_demand", "_output_left", "_work", "has_token")

    def __init__(self, work: ModelWork, demand: Demand, cold: Counter[str] | None) -> None:
        self._work = work
        self._demand = demand
        self._cold = cold
        self._output_left = demand.num_sequences * demand.num_output_tokens
        self._context = demand.num_sequences * demand.num_prompt_tokens
        self.has_token = False
        work.num_requests += 1
        work.num_sequences += demand.num_sequences
        work.num_queued += 1
        work.prompt_tokens += demand.num_prompt_tokens
        work.output_tokens += self._output_left
        work.context_tokens += self._context
        if cold is not None:
            cold[demand.model] += 1

    def note_tokens(self, count: int) -> None:
        """Count output tokens that arrived; with the first, the prompt is done."""
        if not self.has_token:
            self._leave_queue()
        # An output may be longer than expected: what is left is then unknown, not negative.
        done = min(count, self._output_left)
        self._output_left -= done
        self._context += count
        self._work.output_tokens -= done
        self._work.context_tokens += count

    def end(self) -> None:
        """Take back all that is left of it; once only."""
        if not self.has_token:
            self._leave_queue()
        self._work.num_requests -= 1
        self._work.num_sequences -= self._demand.num_sequences
        self._work.output_tokens -= self._output_left
        self._work.context_tokens -= self._context

    def _leave_queue(self) -> None:
        self.has_token = True
        self._work.num_queued -= 1
        self._work.prompt_tokens -= self._demand.num_prompt_tokens
        if self._cold is not None:
            self._cold[self._demand.model] -= 1


class DispatchedWork:
    """The work of one router's requests on each group; entries are context managers."""

    def __init__(self) -> None:
        self._groups: dict[str, dict[str, ModelWork]] = {}
        self._cold: Counter[str] = Counter()

    def of(self, group: str) -> Mapping[str, ModelWork]:
        """The work on a group, by model; counted on in place."""
        return self._groups.get(group, _NOTHING)

    def num_requests(self, group: str) -> int:
        """Requests that the group has."""
        return sum(work.num_requests for work in self.of(group).values())

    def num_tokens(self, group: str) -> int:
        """Tokens of prompts and expected outputs that the group still has to compute."""
        return sum(work.prompt_tokens + work.output_tokens for work in self.of(group).values())

    def num_waiting_cold(self, model: str) -> int:
        """Requests that were sent where the model's weights were not, and have no token yet."""
        return self._cold[model]

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that have requests."""
        return tuple(self._groups)

    @contextmanager
    def entry(self, group: str, demand: Demand, is_cold: bool = False) -> Iterator[WorkEntry]:
        """Count a request while a group has it.

        Args:
            group: The group's name.
            demand: What the request asks.
            is_cold: Whether it waits for weights.
        """
        models = self._groups.setdefault(group, {})
        work = models.setdefault(demand.model, ModelWork())
        entry = WorkEntry(work, demand, self._cold if is_cold else None)
        try:
            yield entry
        finally:
            entry.end()
            self._drop_idle(group, demand.model)

    def _drop_idle(self, group: str, model: str) -> None:
        models = self._groups[group]
        if models[model].num_requests == 0:
            del models[model]
        if not models:
            del self._groups[group]
        if self._cold[model] == 0:
            del self._cold[model]
