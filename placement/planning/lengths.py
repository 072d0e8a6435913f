"""How long a planner's input says requests are."""

from placement.config.lengths import LengthSection, LengthsSection
from placement.workload.lengths import DrawnLengths, EmpiricalLengths, Lengths, Tokens


def lengths_of(section: LengthsSection) -> Lengths:
    """How long requests are.

    Raises:
        ConfigError: A trace of lengths can't be read.
    """
    if section.trace is not None:
        return EmpiricalLengths.from_trace(section.trace.path)
    assert section.prompt is not None, "the section was checked"
    assert section.output is not None, "the section was checked"
    return DrawnLengths(_tokens(section.prompt), _tokens(section.output))


def _tokens(section: LengthSection) -> Tokens:
    if section.max is None:
        return Tokens(section.mean, section.cv)
    return Tokens(section.mean, section.cv, section.max)
