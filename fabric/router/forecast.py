"""What a prediction of service starts from, and what it says; no clock, no I/O."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fabric.core.errors import ConfigError
from fabric.core.profile import Profile
from fabric.core.request import LoadReport, ServedModel, ServicePace
from fabric.core.weights import WeightState


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
    """A model's measured times on a group; ``profile`` is None where nothing was measured.

    ``max_batch`` is the largest batch that was measured: the profiler ends at what the group's
    limits and memory allow.
    """

    profile: Profile | None = None
    load_s: float = 0.0
    fetch_s: float = 0.0
    max_batch: int = 1

    @classmethod
    def of(cls, pace: ServicePace) -> "ModelPace":
        """Build the tables; ones that make no profile count as not measured."""
        if not pace.prefill or not pace.decode:
            return cls(None, pace.load_s, pace.fetch_s)
        try:
            profile = Profile(pace.prefill, pace.decode)
        except ConfigError:
            return cls(None, pace.load_s, pace.fetch_s)
        return cls(profile, pace.load_s, pace.fetch_s, pace.decode[-1][0])

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
    ``ratio`` how times to its first tokens compare with those predicted so far, ``step_ratio`` how
    those from each token to the next do.
    """

    group: str
    work: Mapping[str, ModelWork] = field(default_factory=dict)
    report: LoadReport = field(default_factory=LoadReport)
    paces: Mapping[str, ModelPace] = field(default_factory=dict)
    ratio: float = 1.0
    step_ratio: float = 1.0

    def state(self, model: str) -> WeightState:
        """Where a model's weights are; on the device if the group tells nothing of it."""
        for load in self.report.models:
            if load.model == model:
                return load.state
        return WeightState.RESIDENT


@dataclass(frozen=True, slots=True)
class Forecast:
    """When a request would be served, in seconds from now.

    In ``load_s`` of ``ttft_s`` the weights are brought; the rest was multiplied by ``ratio``, and
    ``tpot_s`` by ``step_ratio``.
    """

    ttft_s: float
    tpot_s: float
    e2e_s: float
    load_s: float = 0.0
    ratio: float = 1.0
    step_ratio: float = 1.0

    @property
    def profiled_ttft_s(self) -> float:
        """What the measured times alone give for the first token, loading left out."""
        return (self.ttft_s - self.load_s) / self.ratio

    @property
    def profiled_tpot_s(self) -> float:
        """What the measured times alone give for each token after the first."""
        return self.tpot_s / self.step_ratio


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
