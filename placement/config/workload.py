"""What the planner's input says about the requests to come."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from placement.config.lengths import LengthSection, LengthsSection
from placement.config.values import Count, InputPath, NotNegative, Positive, Section, Share

Arrivals = Literal["poisson", "gamma", "mmpp", "trace"]
TraceFormat = Literal["azure_llm", "maf1", "maf2", "mooncake", "journal"]
GAMMA_CV = 4.0


class TraceSection(Section):
    """A trace to replay.

    Functions or models of the trace are dealt to ours as ``mapping`` says: every n-th, in equal
    blocks, or by our models' shares; ``names``: a journal's names are ours. Seconds from
    ``start_s`` on count. With ``window_s``, arrivals are drawn anew from a Gamma process fitted to
    each window; without, they are as they were. The search sees the first ``train_share`` of the
    time, the rest is held out.
    """

    path: InputPath
    format: TraceFormat
    mapping: Literal["stripe", "blocks", "shares", "names"] | None = None
    start_s: NotNegative = 0.0
    window_s: Positive | None = None
    cv_scale: Positive = 1.0
    train_share: Share = 0.5


class PopularitySection(Section):
    """How one total of requests is shared out: by models' ``share``, or by a power law.

    With ``power_law`` x, the i-th model of the file gets a share in proportion to i to the -x.
    """

    total_rate_per_s: Positive
    power_law: NotNegative | None = None


class StateSection(Section):
    """A state of a Markov-modulated process: ``factor`` times the model's rate, ``mean_s`` long."""

    factor: NotNegative
    mean_s: Positive


def _default_lengths() -> LengthsSection:
    return LengthsSection(
        prompt=LengthSection(mean=512, cv=1.0), output=LengthSection(mean=128, cv=1.0)
    )


class WorkloadSection(Section):
    """The requests to come: when they arrive, of which models, and how long they are.

    The search sees one draw of ``duration_s``; ``num_held_out`` more, of other seeds, say how good
    its answer is. ``cv`` is the coefficient of variation of a Gamma process's gaps. ``rate_scale``
    multiplies every rate.
    """

    arrivals: Arrivals = "poisson"
    cv: Positive | None = None
    states: Annotated[list[StateSection], Field(min_length=2)] | None = None
    trace: TraceSection | None = None
    duration_s: Positive = 300.0
    rate_scale: Positive = 1.0
    popularity: PopularitySection | None = None
    lengths: LengthsSection = Field(default_factory=_default_lengths)
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    num_held_out: Count = 5

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key, arrivals in (("cv", "gamma"), ("states", "mmpp"), ("trace", "trace")):
            if getattr(self, key) is not None and self.arrivals != arrivals:
                raise ValueError(f"{key}: is for arrivals {arrivals}, not {self.arrivals}")
        for key, arrivals in (("states", "mmpp"), ("trace", "trace")):
            if getattr(self, key) is None and self.arrivals == arrivals:
                raise ValueError(f"{key}: is needed for arrivals {arrivals}")
        return self

    @property
    def gap_cv(self) -> float:
        """The coefficient of variation of gaps, of Poisson and Gamma arrivals."""
        if self.arrivals == "gamma":
            return GAMMA_CV if self.cv is None else self.cv
        return 1.0
