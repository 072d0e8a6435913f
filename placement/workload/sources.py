"""Requests of a trace's own sources, such as functions, become requests to our models."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from fabric.core.errors import ConfigError
from placement.workload.generate import generator
from placement.workload.lengths import Lengths
from placement.workload.popularity import shared_rates
from placement.workload.trace import FloatArray, IntArray, Trace

Mapping = Literal["stripe", "blocks", "names"]


def deal(sources: Sequence[str], names: Sequence[str], mapping: Mapping) -> IntArray:
    """The model of each source.

    Args:
        sources: Of the trace.
        names: Our models.
        mapping: "stripe": source ``i`` is of model ``i`` modulo their number; "blocks": sources
            that follow one another are of one model, as many of each; "names": a source is
            the model of its name.

    Raises:
        ConfigError: A source's name is no model's.

    Source: AlpaServe (Li et al., OSDI 2023), section 6.2, which deals functions round robin.
    """
    places = np.arange(len(sources), dtype=np.int64)
    if mapping == "stripe":
        return (places % len(names)).astype(np.int32)
    if mapping == "blocks":
        return (places * len(names) // max(len(sources), 1)).astype(np.int32)
    numbers = {name: number for number, name in enumerate(names)}
    for source in sources:
        if source not in numbers:
            raise ConfigError(f"the trace asks {source!r}; the models are {', '.join(names)}")
    return np.array([numbers[source] for source in sources], np.int32)


def dealt(trace: Trace, names: Sequence[str], mapping: Mapping) -> Trace:
    """The trace with our models in the place of its sources, as :func:`deal` says."""
    models = deal(trace.names, names, mapping)
    return replace(trace, names=tuple(names), models=models[trace.models])


def dealt_by_shares(trace: Trace, names: Sequence[str], weights: FloatArray, seed: int) -> Trace:
    """The trace with each request's model drawn by the models' weights.

    Raises:
        ConfigError: There is not a weight of at least 0 for each model, one of them above 0.
    """
    if len(weights) != len(names):
        raise ConfigError(f"there are {len(names)} models and {len(weights)} weights")
    shares = shared_rates(1.0, weights)
    rng = generator(seed, 0, "shares")
    models = rng.choice(len(names), len(trace), p=shares).astype(np.int32)
    return replace(trace, names=tuple(names), models=models)


def with_drawn_lengths(trace: Trace, lengths: Sequence[Lengths], seed: int) -> Trace:
    """The trace with other lengths of requests: those of a model are drawn from its own.

    Raises:
        ConfigError: There are not lengths for each model.
    """
    if len(lengths) != len(trace.names):
        raise ConfigError(f"there are {len(trace.names)} models and {len(lengths)} lengths")
    prompts, outputs = trace.prompt_tokens.copy(), trace.output_tokens.copy()
    for model, each in enumerate(lengths):
        here = np.flatnonzero(trace.models == model)
        prompts[here], outputs[here] = each.draw(generator(seed, model, "lengths"), len(here))
    return replace(trace, prompt_tokens=prompts, output_tokens=outputs)
