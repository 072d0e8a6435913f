"""What the planner's input says about models."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from fabric.core.request import Objectives
from placement.config.lengths import LengthsSection
from placement.config.values import Count, InputPath, Name, Positive, Section

ProfileFormat = Literal["fabric", "alpaserve", "muxserve", "aiconfigurator"]


class ObjectivesSection(Section):
    """How fast a model's requests should be served, in seconds after their arrival."""

    ttft_s: Positive | None = None
    tpot_s: Positive | None = None
    e2e_s: Positive | None = None
    refuse_if_late: bool = False

    def objectives(self) -> Objectives:
        """The same as the router knows it."""
        return Objectives(self.ttft_s, self.tpot_s, self.e2e_s, self.refuse_if_late)


class ProfileSection(Section):
    """Measured times of a model: a file of ``fabric profile``, or a table of another project.

    ``model`` is what the table calls it, if that differs from its id; ``device`` is the type that
    it was measured on, where the file doesn't say it.
    """

    path: InputPath
    format: ProfileFormat = "fabric"
    model: str | None = None
    device: Name | None = None


Profile = Annotated[
    ProfileSection,
    BeforeValidator(lambda value: {"path": value} if isinstance(value, str) else value),
]


class ModelSection(Section):
    """A model to place: its sizes, how much is asked of it, and how fast it should answer.

    Its sizes are the catalog's (``shape``) or those of a checkpoint (``config``, its config.json).
    ``source`` is where ``fabric serve`` finds the weights. ``quantization`` is how it is served.
    ``weight_bits`` and ``kv_bits`` are of each stored number, where they differ from what follows
    from these. ``share`` is relative to other models'. Objectives are in seconds, or ``slo_scale``
    times what an unloaded device takes.
    """

    id: Name
    shape: str | None = None
    config: InputPath | None = None
    source: str | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    quantization: Literal["none", "int8", "int4"] = "none"
    weight_bits: Literal[4, 8, 16, 32] | None = None
    kv_bits: Literal[4, 8, 16, 32] | None = None
    max_model_len: Count | None = None
    rate_per_s: Positive | None = None
    share: Positive | None = None
    objectives: ObjectivesSection = ObjectivesSection()
    slo_scale: Positive | None = None
    lengths: LengthsSection | None = None
    profiles: list[Profile] = Field(default_factory=list)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.shape is not None and self.config is not None:
            raise ValueError("shape and config: only one may be given")
        if self.shape is None and self.config is None and not self.profiles:
            raise ValueError("shape (a name of the catalog), config or profiles is needed")
        if self.rate_per_s is not None and self.share is not None:
            raise ValueError("rate_per_s and share: only one may be given")
        if self.slo_scale is not None and self.has_objectives:
            raise ValueError("objectives and slo_scale: only one may be given")
        return self

    @property
    def has_objectives(self) -> bool:
        """Whether objectives are given in seconds."""
        given = self.objectives
        return any(value is not None for value in (given.ttft_s, given.tpot_s, given.e2e_s))
