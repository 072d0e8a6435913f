"""When a request would be served by a group, predicted from measured times; no clock, no I/O."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from fabric.core.errors import ConfigError
from fabric.core.profile import Profile
from fabric.core.request import LoadReport, ModelLoad, ServedModel, ServicePace
from fabric.core.weights import WeightState

# What is left of an output that another router asked for: nobody tells us.
FOREIGN_OUTPUT_TOKENS = 64
# What one model may be served beyond another by a group's scheduler (FairnessConfig.lag_s).
SHARE_LAG_S = 0.25


@dataclass(frozen=True, slots=True)
class Demand:
    """What a request asks of a group, as far as a router can tell before it is served.

    ``num_output_tokens`` are expected of each of ``num_sequences``; ``prefix`` are hashes of the
    prompt's first blocks, each of all tokens up to its end.
    """

    model: str
    num_prompt_tokens: int
    num_output_tokens: int
    num_sequences: int = 1
    prefix: tuple[int, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt and of all expected outputs."""
        return self.num_prompt_tokens + self.num_sequences * self.num_output_tokens


@dataclass(slots=True)
class ModelWork:
    """What a router has dispatched to a group for one model and not seen end; counted in place.

    ``num_queued`` requests have no token yet, with ``prompt_tokens`` in their prompts.
    ``output_tokens`` are still expected; sequences hold ``context_tokens`` of KV when computed.
    """

    num_requests: int = 0
    num_sequences: int = 0
    num_queued: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    context_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ModelPace:
    """A model's measured times on a group; ``profile`` is None where nothing was measured."""

    profile: Profile | None = None
    load_s: float = 0.0
    fetch_s: float = 0.0

    @classmethod
    def of(cls, pace: ServicePace) -> "ModelPace":
        """Build the tables; ones that make no profile count as not measured."""
        if not pace.prefill or not pace.decode:
            return cls(None, pace.load_s, pace.fetch_s)
        try:
            profile = Profile(pace.prefill, pace.decode)
        except ConfigError:
            profile = None
        return cls(profile, pace.load_s, pace.fetch_s)

    def start_s(self, state: WeightState) -> float:
        """Seconds until the weights are on the device, at most."""
        match state:
            case WeightState.RESIDENT:
                return 0.0
            case WeightState.HOST | WeightState.LOADING:
                return self.load_s
            case WeightState.COLD | WeightState.FETCHING:
                return self.fetch_s + self.load_s


@dataclass(frozen=True, slots=True)
class GroupView:
    """A group as a router sees it at one moment.

    ``work`` is what this router has there, by model, ``report`` what the group last told, and
    ``ratio`` how its times compare with those predicted so far.
    """

    group: str
    work: Mapping[str, ModelWork] = field(default_factory=dict)
    report: LoadReport = field(default_factory=LoadReport)
    paces: Mapping[str, ModelPace] = field(default_factory=dict)
    ratio: float = 1.0

    def state(self, model: str) -> WeightState:
        """Where a model's weights are; on the device if the group tells nothing of it."""
        for load in self.report.models:
            if load.model == model:
                return load.state
        return WeightState.RESIDENT


@dataclass(frozen=True, slots=True)
class Forecast:
    """When a request would be served, in seconds from now.

    In ``load_s`` of ``ttft_s`` the weights are brought; the rest was multiplied by ``ratio``.
    """

    ttft_s: float
    tpot_s: float
    e2e_s: float
    load_s: float = 0.0
    ratio: float = 1.0

    @property
    def profiled_s(self) -> float:
        """What the measured times alone give for the first token, loading left out."""
        return (self.ttft_s - self.load_s) / self.ratio


class Paces:
    """The paces of each group's models, built once for each greeting of a group."""

    def __init__(self) -> None:
        self._built: dict[str, tuple[tuple[ServedModel, ...], dict[str, ModelPace]]] = {}

    def of(self, group: str, models: tuple[ServedModel, ...]) -> Mapping[str, ModelPace]:
        """The paces of a group's models, by model."""
        known = self._built.get(group)
        if known is None or known[0] is not models:
            known = models, {it.card.model: ModelPace.of(it.pace) for it in models}
            self._built[group] = known
        return known[1]

    def keep_only(self, groups: set[str]) -> None:
        """Drop all groups but these."""
        for group in self._built.keys() - groups:
            del self._built[group]


def predict(demand: Demand, view: GroupView) -> Forecast | None:
    """When the group would serve the request; None if its model has not been measured there.

    Before its first token come the prompts of its own model that wait already, its own prompt,
    and the iteration under way. Each token after it takes an iteration at the batch that the
    request then finds. Devices are shared: meanwhile every other model is served as long, and
    ``SHARE_LAG_S`` longer, unless it has less to do; what it does during a load doesn't count.

    A router knows its own requests better than the group's report, which is late, and doesn't
    know those of other routers, which only the report shows. Both count the same requests, so
    that their sum would count ours twice: the larger one stands. That is too little only where
    others' requests came in the last report's interval, and never too much.

    Source: AlpaServe (Li et al., OSDI 2023), runtime scheduling, sends to the shortest queue;
    this is the same with lengths in seconds, since requests differ in length here.
    """
    pace = view.paces.get(demand.model)
    if pace is None or pace.profile is None:
        return None
    profile, mine = pace.profile, _Ahead()
    load_s, others = 0.0, []
    for model, ahead, state in _work_ahead(view):
        if model == demand.model:
            mine, load_s = ahead, pace.start_s(state)
        elif ahead.num_sequences:
            theirs = view.paces.get(model)
            others.append(ahead.remaining_s((theirs and theirs.profile) or profile))
    first_s = mine.prefill_s(profile) + profile.prefill_s(demand.num_prompt_tokens)
    if mine.num_sequences:
        first_s += profile.decode_s(mine.num_sequences, mine.context)
    step_s = _step_s(demand, mine, profile)
    num_steps = demand.num_output_tokens - 1
    ttft_s = load_s + view.ratio * _shared(first_s, others, load_s)
    e2e_s = load_s + view.ratio * _shared(first_s + num_steps * step_s, others, load_s)
    tpot_s = (e2e_s - ttft_s) / num_steps if num_steps > 0 else view.ratio * step_s
    return Forecast(ttft_s, tpot_s, e2e_s, load_s, view.ratio)


@dataclass(slots=True)
class _Ahead:
    """One model's work on a group, of all routers, as far as it can be told."""

    num_sequences: int = 0
    num_queued: int = 0
    prompt_tokens: int = 0
    output_tokens: float = 0.0
    context: int = 0

    def prefill_s(self, profile: Profile) -> float:
        """Seconds to compute the prompts that wait, taken to be equally long."""
        if not self.prompt_tokens:
            return 0.0
        count = max(1, self.num_queued)
        return count * profile.prefill_s(self.prompt_tokens // count)

    def remaining_s(self, profile: Profile) -> float:
        """Seconds until all of it is done, if nothing else runs."""
        steps = self.output_tokens / self.num_sequences
        return self.prefill_s(profile) + steps * profile.decode_s(self.num_sequences, self.context)


def _work_ahead(view: GroupView) -> Iterator[tuple[str, _Ahead, WeightState]]:
    loads = view.report.models or _only_model(view)
    for load in loads:
        yield load.model, _larger(view.work.get(load.model), load), load.state
    for model, work in view.work.items():
        if work.num_requests and not any(load.model == model for load in loads):
            yield model, _larger(work, ModelLoad(model)), WeightState.RESIDENT


def _only_model(view: GroupView) -> tuple[ModelLoad, ...]:
    """The load of a group that doesn't tell its models apart; only clear if there is one."""
    if len(view.paces) != 1:
        return ()
    report = view.report
    (model,) = view.paces
    return (ModelLoad(model, num_running=report.num_running, num_waiting=report.num_waiting),)


def _larger(work: ModelWork | None, load: ModelLoad) -> _Ahead:
    reported = load.num_running + load.num_waiting
    if work is None or not work.num_sequences:
        left = float(reported * FOREIGN_OUTPUT_TOKENS)
        return _Ahead(reported, load.num_waiting, load.num_queued_tokens, left)
    ours = work.num_sequences
    count = max(ours, reported)
    return _Ahead(
        count,
        max(work.num_queued, load.num_waiting),
        max(work.prompt_tokens, load.num_queued_tokens),
        work.output_tokens * count / ours,
        work.context_tokens // ours,
    )


def _step_s(demand: Demand, mine: _Ahead, profile: Profile) -> float:
    """Seconds of an iteration with the request in it, half-way through its output."""
    count = mine.num_sequences + demand.num_sequences
    own = demand.num_prompt_tokens + demand.num_output_tokens // 2
    context = (mine.context * mine.num_sequences + own * demand.num_sequences) // count
    return profile.decode_s(count, context)


def _shared(own_s: float, others: list[float], load_s: float) -> float:
    """Seconds until a model has been served for ``own_s`` beside others, which go on meanwhile."""
    allowed_s = own_s + SHARE_LAG_S
    return own_s + sum(min(max(0.0, left_s - load_s), allowed_s) for left_s in others)
