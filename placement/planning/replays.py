"""Requests out of a trace's file: part of its time for the search, the rest to judge by."""

import numpy as np

from fabric.core.errors import ConfigError
from placement.config.schema import PlanInput
from placement.config.workload import TraceSection
from placement.planning.lengths import lengths_of
from placement.workload.arrivals import poisson_arrivals
from placement.workload.functions import (
    MINUTE_S,
    deal_counts,
    read_invocations,
    read_minute_counts,
    replay_counts,
)
from placement.workload.generate import ModelWorkload
from placement.workload.recorded import read_journal, read_requests
from placement.workload.refit import Refit, refit_trace
from placement.workload.sources import Mapping, dealt, dealt_by_shares, with_drawn_lengths
from placement.workload.trace import Trace
from placement.workload.windows import cut, scale_rate, split


def replayed(inputs: PlanInput, section: TraceSection, seed: int, *, is_training: bool) -> Trace:
    """The trace's requests to our models, in the first part of its time or in the rest.

    Args:
        inputs: What the user says; ``duration_s`` and ``rate_scale`` are its workload's.
        section: The trace.
        seed: Of what is drawn: models by shares, lengths of functions, arrivals by windows.
        is_training: Whether the first part is asked for.

    Raises:
        ConfigError: The file can't be read, or nothing is asked in that time.
    """
    workload = inputs.workload
    refit = _refit(section, workload.rate_scale)
    if section.format == "maf1":
        whole = _from_counts(inputs, section, refit, seed)
    else:
        whole = _mapped(inputs, section, seed)
    part = (
        split(whole, section.train_share)[0 if is_training else 1] if _is_split(section) else whole
    )
    if refit is not None and section.format != "maf1":
        part = refit_trace(part, refit, seed)
    if not len(part):
        raise ConfigError(
            f"{section.path}: nobody asks for anything from {section.start_s:g} s on for "
            f"{workload.duration_s:g} s"
        )
    return part if refit is not None else scale_rate(part, workload.rate_scale)


def _is_split(section: TraceSection) -> bool:
    """All of the time trains, and is judged by, if the share is 1."""
    return section.train_share < 1.0


def _refit(section: TraceSection, rate_scale: float) -> Refit | None:
    if section.window_s is None:
        return None
    is_counted = section.format == "maf1"
    return Refit(
        section.window_s, "counts" if is_counted else "gamma", rate_scale, section.cv_scale
    )


def _mapped(inputs: PlanInput, section: TraceSection, seed: int) -> Trace:
    """The trace's time that counts, with our models and with lengths."""
    names, workload = inputs.model_ids, inputs.workload
    if section.format == "maf2":
        found = read_invocations(section.path, section.start_s, workload.duration_s)
        mapping = _mapping(section, "stripe")
        lengths = [lengths_of(model.lengths or workload.lengths) for model in inputs.models]
        return with_drawn_lengths(dealt(found, names, mapping), lengths, seed)
    if section.format == "journal":
        recorded = _time_of(read_journal(section.path), inputs)
        return dealt(recorded, names, _mapping(section, "names"))
    found = _time_of(read_requests(section.path), inputs)
    if section.mapping not in (None, "shares"):
        raise ConfigError(
            f"workload.trace.mapping is {section.mapping}; requests of {section.format} have no "
            "names, so that only shares is possible"
        )
    return dealt_by_shares(found, names, np.array(inputs.shares()), inputs.workload.seed)


def _time_of(trace: Trace, inputs: PlanInput) -> Trace:
    section = inputs.workload.trace
    assert section is not None, "only a trace has a time that counts"
    if section.start_s >= trace.duration_s:
        raise ConfigError(
            f"workload.trace.start_s is {section.start_s:g}; {section.path} is "
            f"{trace.duration_s:g} s long"
        )
    end_s = min(trace.duration_s, section.start_s + inputs.workload.duration_s)
    return cut(trace, section.start_s, end_s)


def _mapping(section: TraceSection, usual: Mapping) -> Mapping:
    if section.mapping == "shares":
        raise ConfigError(
            f"workload.trace.mapping is shares; allowed for {section.format}: stripe, blocks, names"
        )
    return section.mapping or usual


def _from_counts(inputs: PlanInput, section: TraceSection, refit: Refit | None, seed: int) -> Trace:
    workload = inputs.workload
    counts = read_minute_counts(
        section.path,
        int(section.start_s // MINUTE_S),
        max(1, round(workload.duration_s / MINUTE_S)),
    )
    models = [
        ModelWorkload(
            model.id, poisson_arrivals(1.0), lengths_of(model.lengths or workload.lengths)
        )
        for model in inputs.models
    ]
    dealt_out = deal_counts(counts, inputs.model_ids, _mapping(section, "stripe"))
    return replay_counts(dealt_out, models, refit, seed)
