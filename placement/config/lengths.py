"""What the planner's input says about the lengths of prompts and outputs."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, model_validator

from placement.config.values import Count, InputPath, NotNegative, Positive, Section

RequestFormat = Literal["azure_llm", "mooncake", "journal"]


class LengthSection(Section):
    """Numbers of tokens: lognormal with ``mean`` and ``cv``, or all the same if ``cv`` is 0."""

    mean: Positive
    cv: NotNegative = 0.0
    max: Count | None = None


Length = Annotated[
    LengthSection,
    BeforeValidator(lambda value: {"mean": value} if isinstance(value, int | float) else value),
]


class LengthsTraceSection(Section):
    """A trace whose requests' lengths are drawn, prompt and output together."""

    path: InputPath
    format: RequestFormat = "azure_llm"


LengthsTrace = Annotated[
    LengthsTraceSection,
    BeforeValidator(lambda value: {"path": value} if isinstance(value, str) else value),
]


class LengthsSection(Section):
    """Tokens of prompts and outputs: both by themselves, or of a trace's requests."""

    prompt: Length | None = None
    output: Length | None = None
    trace: LengthsTrace | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.trace is not None and (self.prompt is not None or self.output is not None):
            raise ValueError("trace: gives both lengths; prompt and output may not be given")
        if self.trace is None and (self.prompt is None or self.output is None):
            raise ValueError("prompt and output are needed, or trace")
        return self
