"""A request in flight, from its reader's side, and all that is counted on the way."""

import asyncio
from dataclasses import dataclass, replace

from fabric.core.errors import DeadlineExceeded
from fabric.core.generation import Completed, Started
from fabric.core.request import FinishReason, GenerationRequest
from fabric.router.figures import ServiceFigures
from fabric.router.journal import JournalEntry
from fabric.router.mailbox import Letters, Mailbox
from fabric.router.routing import Route, Routing
from fabric.router.tenants import TenantEntry
from fabric.router.work import WorkEntry


@dataclass(frozen=True, slots=True)
class Places:
    """Where one request's tokens are counted: in its group's work, and with its tenant."""

    work: WorkEntry
    tenant: TenantEntry


class Meter:
    """Tells everybody who counts of one request's tokens and of its end."""

    def __init__(
        self,
        request: GenerationRequest,
        route: Route,
        places: Places,
        figures: ServiceFigures,
        routing: Routing,
    ) -> None:
        self._request = request
        self._route = route
        self._places = places
        self._figures = figures
        self._routing = routing
        self._last_s: float | None = None
        self._dispatched_s = 0.0

    def start(self, now: float) -> None:
        """The group has the request."""
        self._dispatched_s = now
        self._places.tenant.num_used = len(self._request.prompt_token_ids)
        self._routing.note_dispatched(self._route)

    def note_tokens(self, count: int, now: float) -> None:
        """So many output tokens have come."""
        last_s, self._last_s = self._last_s, now
        if last_s is None:
            self._figures.num_prompt_tokens += len(self._request.prompt_token_ids)
            self._routing.note_first_token(self._route, now - self._dispatched_s, now)
        self._figures.note_tokens(count, None if last_s is None else now - last_s)
        self._places.work.note_tokens(count)
        self._places.tenant.num_used += count

    def note_end(self, end: Completed, reason: FinishReason | None, now: float) -> None:
        """The request has completed."""
        self._figures.note_end(end, reason)
        if reason not in (FinishReason.STOP, FinishReason.LENGTH):
            return
        num_tokens = end.usage.completion_tokens / self._request.sampling.n
        self._routing.note_output(self._request, num_tokens)
        if num_tokens > 1.0:
            tpot_s = end.timing.decode_s / (num_tokens - 1.0)
            self._routing.note_pace(self._route, tpot_s, now)


class Answer:
    """What a request's reader takes from."""

    def __init__(
        self,
        request: GenerationRequest,
        group: str,
        mailbox: Mailbox,
        journal: JournalEntry,
        meter: Meter,
    ) -> None:
        prompt_tokens = len(request.prompt_token_ids)
        self.started = Started(
            request.request_id, request.model, prompt_tokens, request.sampling.seed
        )
        self.group = group
        self._mailbox = mailbox
        self._journal = journal
        self._meter = meter
        self._now = asyncio.get_running_loop().time
        self.finish_reason: FinishReason | None = None
        self.completed: Completed | None = None

    async def take(self) -> Letters:
        """What is ready next, waiting if nothing is; the end is set on the last."""
        letters = await self._mailbox.take()
        num_tokens = 0
        for delta in letters.deltas:
            self._journal.record(delta)
            self.finish_reason = delta.finish_reason or self.finish_reason
            num_tokens += len(delta.token_ids)
        if num_tokens:
            self._meter.note_tokens(num_tokens, self._now())
        end = letters.end
        if not isinstance(end, Completed):
            return letters
        if self.finish_reason is FinishReason.DEADLINE:
            late = DeadlineExceeded("the deadline passed before the request finished")
            return Letters(letters.deltas, late)
        self._meter.note_end(end, self.finish_reason, self._now())
        self.completed = Completed(end.usage, replace(end.timing, group=self.group))
        return Letters(letters.deltas, self.completed)
