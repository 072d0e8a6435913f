"""A request's way through the router: admit, choose a group, submit, follow its tokens."""

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace

from fabric.core.errors import RequestError, Unavailable
from fabric.core.prompt import GenerationSpec
from fabric.core.request import FinishReason, GenerationRequest
from fabric.router.admission import Admission
from fabric.router.answer import Answer, Meter, Places
from fabric.router.catalog import Catalog
from fabric.router.figures import ServiceFigures, SloFigures
from fabric.router.journal import Journal
from fabric.router.ledger import InflightLedger
from fabric.router.objectives import refusal
from fabric.router.routing import Route, Routing
from fabric.router.tenants import TenantBuckets, TenantEntry
from fabric.rpc.status import status_code


@dataclass(slots=True)
class _Ending:
    """How a request ends: what is known of it by then."""

    request: GenerationRequest | None = None
    answer: Answer | None = None


class Dispatcher:
    """Opens answers for requests; knows what is in flight, and how requests ended."""

    def __init__(
        self,
        catalog: Catalog,
        admission: Admission,
        routing: Routing,
        ledger: InflightLedger,
        tenants: TenantBuckets,
    ) -> None:
        self._catalog = catalog
        self._admission = admission
        self._journal = Journal()
        self.now = asyncio.get_running_loop().time
        self.routing = routing
        self.tenants = tenants
        self.ledger = ledger
        self.outcomes: Counter[str] = Counter()
        self.figures: dict[tuple[str, str], ServiceFigures] = {}
        self.slo = SloFigures()
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
        with (
            self._counted(timeout_s) as ending,
            self.ledger.admitted(),
            self.tenants.admitted(spec.tenant, self.now()) as tenant,
        ):
            request = await self._admit(spec, timeout_s)
            route = self._route(request, tenant)
            ending.request = request
            with (
                self._journal.entry(request) as journal,
                self.ledger.dispatched(route.group, route.demand, route.is_cold) as work,
                self._catalog.link(route.group).open(request) as mailbox,
            ):
                meter = Meter(
                    request, route, Places(work, tenant), self._figures(route), self.routing
                )
                meter.start(self.now())
                ending.answer = Answer(request, route.group, mailbox, journal, meter)
                yield ending.answer

    def _route(self, request: GenerationRequest, tenant: TenantEntry) -> Route:
        """Where the request goes, paid for by its tenant.

        Raises:
            Overloaded: The tenant has used up its tokens, too many wait for the weights, or an
                objective would be missed and the request is rather refused.
            Unavailable: No group can take it.
        """
        now = self.now()
        groups = self._catalog.ready(request.model)
        demand = self.routing.demand(request, len(groups))
        tenant.charge(demand.num_tokens, now)
        route = self.routing.route(demand, request.objectives, groups, now)
        if route.miss is not None and request.objectives.refuse_if_late:
            self.slo.note_refused(request.model, route.miss.objective)
            raise refusal(request.model, route.miss)
        return route

    def _figures(self, route: Route) -> ServiceFigures:
        return self.figures.setdefault((route.demand.model, route.group), ServiceFigures())

    async def _admit(self, spec: GenerationSpec, timeout_s: float | None) -> GenerationRequest:
        if self.is_draining:
            raise Unavailable("the router drains", 1.0)
        served = self._catalog.served(spec.model)
        # Before the work of tokenizing is spent on it.
        self._catalog.ready_groups(spec.model)
        named = spec if spec.request_id else replace(spec, request_id=uuid.uuid4().hex)
        started_s = self.now()
        request = await self._admission.admit(named, served, timeout_s)
        objectives = self.routing.objectives(request)
        if timeout_s is None:
            return replace(request, objectives=objectives)
        left_s = max(0.0, timeout_s - (self.now() - started_s))
        return replace(request, objectives=objectives, timeout_s=left_s)

    @contextmanager
    def _counted(self, timeout_s: float | None) -> Iterator[_Ending]:
        """Count how the request inside ends; what is known of it is put into the ending."""
        started_s = self.now()
        ending = _Ending()
        outcome = "INTERNAL"
        try:
            yield ending
            reason = ending.answer.finish_reason if ending.answer else None
            outcome = str(reason or FinishReason.CANCELLED)
        except RequestError as error:
            outcome = status_code(error).name
            raise
        except asyncio.CancelledError:
            is_late = timeout_s is not None and self.now() - started_s >= timeout_s
            outcome = "DEADLINE_EXCEEDED" if is_late else "CANCELLED"
            raise
        finally:
            self.outcomes[outcome] += 1
            self._judge(ending, outcome)

    def _judge(self, ending: _Ending, outcome: str) -> None:
        request = ending.request
        if request is None:
            return
        completed = ending.answer.completed if ending.answer else None
        if completed is not None:
            num_tokens = completed.usage.completion_tokens / request.sampling.n
            self.slo.note_completed(request.model, request.objectives, completed.timing, num_tokens)
        elif outcome.upper() != "CANCELLED":
            self.slo.note_failed(request.model, request.objectives)
