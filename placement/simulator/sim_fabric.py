"""A router and its device groups on one virtual clock."""

import random
from collections.abc import Sequence
from heapq import heappop, heappush
from math import inf, nan

import numpy as np

from fabric.core.errors import ConfigError, RequestError
from fabric.core.request import GenerationRequest
from fabric.router.routing import ReadyGroup
from fabric.scheduler.output import RequestEnd, SequenceUpdate
from placement.simulator.outcome import Outcome
from placement.simulator.sim_engine import Observe, SimulatedEngine
from placement.simulator.sim_group import build_group
from placement.simulator.sim_requests import TraceRequests
from placement.simulator.sim_router import Dispatched, SimulatedRouter, objectives_of
from placement.simulator.simulated import Detail, RouterModel, SimulatedGroup
from placement.workload.trace import Trace

# How often a group tells routers its load (fabric.engine.link_server).
_REPORT_INTERVAL_S = 0.25


class SimulatedFabric:
    """Takes a trace's requests in, each group's events and reports in between, in their order.

    Groups only tell what makes a difference: their loads, and each token, where the router has a
    choice or may refuse.
    """

    def __init__(
        self,
        groups: Sequence[SimulatedGroup],
        trace: Trace,
        router: RouterModel,
        seed: int,
        observe: Observe | None = None,
    ) -> None:
        """Build everything.

        Raises:
            ConfigError: A model of the trace is in no group, or a group's models don't fit.
        """
        _check(groups, trace)
        built = [build_group(group) for group in groups]
        self._trace = trace
        self._request_s = router.request_s
        self._requests = TraceRequests(trace, objectives_of(router, trace.names))
        ready = [
            ReadyGroup(group.name, one.served, one.scheduler.report())
            for group, one in zip(groups, built, strict=True)
        ]
        self._router = SimulatedRouter(ready, trace.names, router, seed)
        self._max_inflight = router.max_inflight
        self._is_watched = (
            not self._router.is_plain
            or any(one.can_wait_for_weights for one in built)
            or any((g.scheduler.residency.idle_s or inf) <= _longest_gap_s(trace) for g in groups)
        )
        self._engines = [
            SimulatedEngine(
                one, [model.cost for model in group.models], self, self._is_watched, observe
            )
            for group, one in zip(groups, built, strict=True)
        ]
        self._names = [group.name for group in groups]
        self._numbers = {name: number for number, name in enumerate(self._names)}
        self._live: dict[str, tuple[int, Dispatched | None]] = {}
        self._events: list[tuple[float, int]] = []
        self._span_s = 0.0
        self._is_last = False
        self._arrivals_s: list[float] = trace.arrivals_s.tolist()
        self._ttft_s = [nan] * len(trace)
        self._e2e_s = [nan] * len(trace)
        self._num_tokens = [0] * len(trace)
        self._groups = [-1] * len(trace)
        for number, engine in enumerate(self._engines):
            self._expect(number, engine)
        if self._is_watched:
            self._expect_reports(seed)

    def run(self) -> Detail:
        """Serve all requests, and say what became of them."""
        for index, arrival_s in enumerate(self._arrivals_s):
            now = arrival_s + self._request_s
            self._advance_to(now)
            self._dispatch(index, self._requests.request(index), now)
        self._is_last = True
        self._advance_to(inf)
        assert not self._live, "engines that have work go on"
        figures = (e.figures(n) for e, n in zip(self._engines, self._names, strict=True))
        return Detail(self._outcome(), tuple(figures), self._span_s)

    def note_refused(self, request_id: str, error: RequestError) -> None:
        """A group's engine has refused a request."""
        index, dispatched = self._live.pop(request_id)
        self._groups[index] = -1
        if dispatched is not None:
            self._router.note_end(dispatched, None, 0.0)

    def note_tokens(self, updates: Sequence[SequenceUpdate], now: float) -> None:
        """Requests have got tokens."""
        for update in updates:
            dispatched = self._live[update.request_id][1]
            assert dispatched is not None, "only who is watched is heard of"
            if not dispatched.work.has_token:
                self._router.note_first_token(dispatched, now)
            dispatched.work.note_tokens(len(update.token_ids))

    def note_end(self, end: RequestEnd, now: float) -> None:
        """A request has ended."""
        index, dispatched = self._live.pop(end.request_id)
        if dispatched is not None:
            self._router.note_end(dispatched, end, now)
        num_tokens = self._num_tokens[index] = end.usage.completion_tokens
        arrival_s = self._arrivals_s[index]
        if num_tokens:
            self._ttft_s[index] = now - end.timing.decode_s - arrival_s
        if end.error is None:
            self._e2e_s[index] = now - arrival_s
        self._span_s = max(self._span_s, now)

    def _dispatch(self, index: int, request: GenerationRequest, now: float) -> None:
        dispatched = None
        if len(self._live) >= self._max_inflight:
            return
        if self._is_watched:
            dispatched = self._router.dispatch(request, now)
            if dispatched is None:
                return
            group = dispatched.route.group
        else:
            group = self._router.only_group(request.model)
        number = self._groups[index] = self._numbers[group]
        self._live[request.request_id] = index, dispatched
        engine = self._engines[number]
        before_s = engine.next_at_s
        engine.submit(request, now)
        if engine.next_at_s != before_s:
            self._expect(number, engine)

    def _advance_to(self, until_s: float) -> None:
        """Let everything happen that is due before then; for ever: until all requests ended."""
        events, engines = self._events, self._engines
        while events and events[0][0] < until_s:
            if until_s == inf and not self._live:
                return
            at_s, number = heappop(events)
            if number >= len(engines):
                self._report(number - len(engines), at_s)
                continue
            engine = engines[number]
            # An engine that was woken earlier has a newer event.
            if engine.next_at_s == at_s:
                engine.advance()
                self._expect(number, engine)

    def _expect(self, number: int, engine: SimulatedEngine) -> None:
        if engine.next_at_s < inf:
            heappush(self._events, (engine.next_at_s, number))

    def _expect_reports(self, seed: int) -> None:
        """Each group reports in its own rhythm."""
        draw = random.Random(seed)
        for number in range(len(self._engines)):
            at_s = draw.uniform(0.0, _REPORT_INTERVAL_S)
            heappush(self._events, (at_s, len(self._engines) + number))

    def _report(self, number: int, now: float) -> None:
        self._router.note_report(self._names[number], self._engines[number].report())
        if self._is_last and all(engine.next_at_s == inf for engine in self._engines):
            return
        heappush(self._events, (now + _REPORT_INTERVAL_S, len(self._engines) + number))

    def _outcome(self) -> Outcome:
        return Outcome(
            self._trace,
            np.array(self._ttft_s, dtype=np.float64),
            np.array(self._e2e_s, dtype=np.float64),
            np.array(self._num_tokens, dtype=np.int32),
            np.array(self._groups, dtype=np.int32),
        )


def _longest_gap_s(trace: Trace) -> float:
    """The longest time without an arrival for one of the models, until its last one."""
    gaps_s = [0.0]
    for model in range(len(trace.names)):
        arrivals_s = trace.arrivals_s[trace.models == model]
        gaps_s.append(float(np.diff(arrivals_s, prepend=0.0).max(initial=0.0)))
    return max(gaps_s)


def _check(groups: Sequence[SimulatedGroup], trace: Trace) -> None:
    names = [group.name for group in groups]
    if len(set(names)) < len(names):
        raise ConfigError(f"groups are {names}; names that differ are needed")
    hosted = {model.share.model for group in groups for model in group.models}
    if missing := sorted(set(trace.names) - hosted):
        raise ConfigError(f"no group hosts {', '.join(missing)}")
    if (np.diff(trace.arrivals_s) < 0.0).any():
        raise ConfigError("arrivals_s of the trace are not in ascending order")
