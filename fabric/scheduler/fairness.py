"""Who has had more than its share of service, among models and tenants that have work."""

from collections import OrderedDict
from collections.abc import Iterable

from fabric.scheduler.request import SequenceState
from fabric.scheduler.settings import FairnessConfig

_MEMORY = 1024
# Nobody is owed more than this many lags: who could not run, such as a model whose weights were
# on their way, would else have the device for itself for as long.
_MOST_LAGS_OWED = 4.0


class _Flow:
    """What one tenant asks of one model, and the weighted seconds of service that it has had."""

    __slots__ = ("live", "served_s", "turn", "weight")

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.served_s = 0.0
        self.turn = 0
        self.live: dict[int, SequenceState] = {}


class Fairness:
    """Counts service by (model, tenant), and says in whose turn a sequence is.

    A flow's turn is its weighted service in units of ``lag_s``; within a priority, the scheduler
    puts lower turns first, whatever the policy says. Where only one flow has work nothing is
    counted, so the policy alone decides. A flow that comes back starts level with the one that
    has had least, or where it was if that is more.

    Source: VTC (Sheng et al., OSDI 2024), with seconds of service for tokens.
    """

    def __init__(self, config: FairnessConfig) -> None:
        self._config = config
        self._flows: OrderedDict[tuple[str, str], _Flow] = OrderedDict()
        self._live: dict[tuple[str, str], _Flow] = {}

    def enter(self, sequence: SequenceState) -> int:
        """Count a new sequence in; return its turn."""
        key = _key(sequence)
        flow = self._live.get(key)
        if flow is None:
            flow = self._flow(key)
            least_s = min((other.served_s for other in self._live.values()), default=0.0)
            flow.served_s = max(flow.served_s, least_s)
            least_turn = min((other.turn for other in self._live.values()), default=0)
            flow.turn = max(self._turn_of(flow), least_turn)
            self._live[key] = flow
        flow.live[sequence.key] = sequence
        return flow.turn

    def leave(self, sequence: SequenceState) -> None:
        """Count a sequence out."""
        key = _key(sequence)
        flow = self._live[key]
        del flow.live[sequence.key]
        if not flow.live:
            del self._live[key]

    def charge(
        self, shares: Iterable[tuple[SequenceState, int]], elapsed_s: float
    ) -> list[SequenceState]:
        """Count an iteration's seconds, shared out by (sequence, tokens computed).

        Returns:
            Sequences whose turn has changed; it is noted in them.
        """
        if len(self._live) < 2 or self._config.lag_s is None:
            return []
        tokens: dict[tuple[str, str], int] = {}
        for sequence, num_tokens in shares:
            source = sequence.request.source
            key = source.model, source.tenant
            tokens[key] = tokens.get(key, 0) + num_tokens
        total, changed = sum(tokens.values()), list[SequenceState]()
        for key, num_tokens in tokens.items():
            if flow := self._live.get(key):
                flow.served_s += elapsed_s * num_tokens / total / flow.weight
                if self._turn_of(flow) > flow.turn:
                    changed += self._advance(flow)
        return changed

    def _advance(self, flow: _Flow) -> list[SequenceState]:
        """Begin a flow's next turn, and bound what it owes to the others."""
        assert self._config.lag_s is not None
        least_s = flow.served_s - _MOST_LAGS_OWED * self._config.lag_s
        changed: list[SequenceState] = []
        for other in self._live.values():
            other.served_s = max(other.served_s, least_s)
            if (turn := self._turn_of(other)) > other.turn:
                other.turn = turn
                for sequence in other.live.values():
                    sequence.turn = turn
                    changed.append(sequence)
        return changed

    def _turn_of(self, flow: _Flow) -> int:
        lag_s = self._config.lag_s
        return 0 if lag_s is None else int(flow.served_s / lag_s)

    def _flow(self, key: tuple[str, str]) -> _Flow:
        flow = self._flows.get(key)
        if flow is None:
            model, tenant = key
            models, tenants = self._config.model_weights, self._config.tenant_weights
            flow = self._flows[key] = _Flow(models.get(model, 1.0) * tenants.get(tenant, 1.0))
            if len(self._flows) > _MEMORY:
                self._forget_one(key)
        self._flows.move_to_end(key)
        return flow

    def _forget_one(self, newest: tuple[str, str]) -> None:
        """Forget whoever has been without work for longest; all may have work."""
        idle = (key for key, flow in self._flows.items() if not flow.live and key != newest)
        if (oldest := next(idle, None)) is not None:
            del self._flows[oldest]


def _key(sequence: SequenceState) -> tuple[str, str]:
    source = sequence.request.source
    return source.model, source.tenant
