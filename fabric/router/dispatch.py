"""A request's way through the router: admit, choose a group, submit, follow its tokens."""

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace

from fabric.core.errors import DeadlineExceeded, RequestError, Unavailable
from fabric.core.generation import Completed, Started
from fabric.core.prompt import GenerationSpec
from fabric.core.request import FinishReason, GenerationRequest
from fabric.router.admission import Admission
from fabric.router.catalog import Catalog
from fabric.router.figures import ServiceFigures
from fabric.router.journal import Journal, JournalEntry
from fabric.router.ledger import InflightLedger
from fabric.router.mailbox import Letters, Mailbox
from fabric.router.policy import RoutingPolicy
from fabric.rpc.status import status_code


class Answer:
    """A request in flight, from its reader's side."""

    def __init__(
        self,
        started: Started,
        group: str,
        mailbox: Mailbox,
        entry: JournalEntry,
        figures: ServiceFigures,
    ) -> None:
        self.started = started
        self._group = group
        self._mailbox = mailbox
        self._entry = entry
        self._figures = figures
        self._now = asyncio.get_running_loop().time
        self._last_token_s: float | None = None
        self.finish_reason: FinishReason | None = None

    async def take(self) -> Letters:
        """What is ready next, waiting if nothing is; the end is set on the last."""
        letters = await self._mailbox.take()
        num_tokens = 0
        for delta in letters.deltas:
            self._entry.record(delta)
            self.finish_reason = delta.finish_reason or self.finish_reason
            num_tokens += len(delta.token_ids)
        if num_tokens:
            self._note_tokens(num_tokens)
        end = letters.end
        if not isinstance(end, Completed):
            return letters
        if self.finish_reason is FinishReason.DEADLINE:
            late = DeadlineExceeded("the deadline passed before the request finished")
            return Letters(letters.deltas, late)
        self._figures.note_end(end, self.finish_reason)
        timing = replace(end.timing, group=self._group)
        return Letters(letters.deltas, Completed(end.usage, timing))

    def _note_tokens(self, count: int) -> None:
        now, last_s = self._now(), self._last_token_s
        self._last_token_s = now
        if last_s is None:
            self._figures.num_prompt_tokens += self.started.prompt_tokens
        self._figures.note_tokens(count, None if last_s is None else now - last_s)


class Dispatcher:
    """Opens answers for requests; knows what is in flight, and how requests ended."""

    def __init__(
        self, catalog: Catalog, admission: Admission, policy: RoutingPolicy, ledger: InflightLedger
    ) -> None:
        self._catalog = catalog
        self._admission = admission
        self._policy = policy
        self._journal = Journal()
        self.ledger = ledger
        self.outcomes: Counter[str] = Counter()
        self.figures: dict[tuple[str, str], ServiceFigures] = {}
        self.is_draining = False

    @asynccontextmanager
    async def open(self, spec: GenerationSpec, timeout_s: float | None) -> AsyncIterator[Answer]:
        """Run a request; leaving the context before its end cancels it.

        Args:
            spec: What the client asks for; a request id is made if it has none.
            timeout_s: What is left of the client's deadline; None for no deadline.

        Raises:
            RequestError: It is refused, with nothing in flight.
        """
        with self._counted(timeout_s) as ended, self.ledger.admitted():
            request = await self._admit(spec, timeout_s)
            groups = self._catalog.ready_groups(request.model)
            group = self._policy.choose([self.ledger.load(name) for name in groups])
            with (
                self._journal.entry(request) as entry,
                self.ledger.dispatched(group, _num_tokens(request)),
                self._catalog.link(group).open(request) as mailbox,
            ):
                figures = self.figures.setdefault((request.model, group), ServiceFigures())
                answer = Answer(_started(request), group, mailbox, entry, figures)
                yield answer
                ended.append(answer.finish_reason)

    async def _admit(self, spec: GenerationSpec, timeout_s: float | None) -> GenerationRequest:
        if self.is_draining:
            raise Unavailable("the router drains", 1.0)
        served = self._catalog.served(spec.model)
        # Before the work of tokenizing is spent on it.
        self._catalog.ready_groups(spec.model)
        named = spec if spec.request_id else replace(spec, request_id=uuid.uuid4().hex)
        started_s = asyncio.get_running_loop().time()
        request = await self._admission.admit(named, served, timeout_s)
        if timeout_s is None:
            return request
        spent_s = asyncio.get_running_loop().time() - started_s
        return replace(request, timeout_s=max(0.0, timeout_s - spent_s))

    @contextmanager
    def _counted(self, timeout_s: float | None) -> Iterator[list[FinishReason | None]]:
        """Count how the request inside ends; it puts its finish reason into the list."""
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        ended: list[FinishReason | None] = []
        outcome = "INTERNAL"
        try:
            yield ended
            outcome = str(ended[0] or FinishReason.CANCELLED)
        except RequestError as error:
            outcome = status_code(error).name
            raise
        except asyncio.CancelledError:
            is_late = timeout_s is not None and loop.time() - started_s >= timeout_s
            outcome = "DEADLINE_EXCEEDED" if is_late else "CANCELLED"
            raise
        finally:
            self.outcomes[outcome] += 1


def _started(request: GenerationRequest) -> Started:
    num_tokens = len(request.prompt_token_ids)
    return Started(request.request_id, request.model, num_tokens, request.sampling.seed)


def _num_tokens(request: GenerationRequest) -> int:
    """What a group may have to compute for the request, at most."""
    return len(request.prompt_token_ids) + request.sampling.n * request.sampling.max_tokens
