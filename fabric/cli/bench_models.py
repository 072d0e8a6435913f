"""Which models a benchmark asks, for what part of its requests, and when each is asked."""

import heapq
import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter

from fabric.cli.bench_workload import gamma_arrivals
from fabric.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ModelShare:
    """A model, and its part of all requests, from 0 to 1."""

    model: str
    share: float


def parse_model(text: str) -> tuple[str, float | None]:
    """Read ``NAME`` or ``NAME=WEIGHT``.

    Raises:
        ValueError: The weight is not a number above 0.
    """
    name, equals, weight = text.rpartition("=")
    if not equals:
        return text, None
    return name, parse_positive(weight, text)


def parse_positive(number: str, text: str) -> float:
    """Read a number above 0.

    Args:
        number: As it is written.
        text: What it is a part of, for the message.

    Raises:
        ValueError: It is not a finite number above 0.
    """
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError(f"{text}: {number or 'nothing'} is not a number above 0")
    return value


def shares_of(
    models: Sequence[tuple[str, float | None]], popularity: float | None = None
) -> tuple[ModelShare, ...]:
    """Divide the requests among the models.

    Args:
        models: Names and weights; without a weight a model counts 1.
        popularity: Exponent of a power law instead: model ``i``, from 0, counts
            ``(i + 1) ** -popularity``.

    Raises:
        ConfigError: A model is there twice, or both ways of dividing are asked for.

    Source: AlpaServe (Li et al., OSDI 2023), section 6: power-law popularity, exponent 0.5.
    """
    names = [name for name, _ in models]
    if len(set(names)) < len(names):
        raise ConfigError(f"--model: {max(names, key=names.count)} is there twice")
    weights = [1.0 if weight is None else weight for _, weight in models]
    if popularity is not None:
        if any(weight is not None for _, weight in models):
            raise ConfigError("--popularity: the models have weights already")
        weights = [(place + 1) ** -popularity for place in range(len(models))]
    total = sum(weights)
    return tuple(ModelShare(n, w / total) for n, w in zip(names, weights, strict=True))


def draw_models(shares: Sequence[ModelShare], num_requests: int, seed: int) -> list[str]:
    """Draw the model of each request, by the models' shares."""
    names, weights = [s.model for s in shares], [s.share for s in shares]
    return random.Random(seed).choices(names, weights, k=num_requests)


def draw_mix(
    shares: Sequence[ModelShare], num_requests: int, rate_per_s: float, cv: float, seed: int
) -> list[tuple[float, str]]:
    """Draw the first arrivals of all models together, each model's a gamma process of its own.

    A model's process was under way before: its first gap is drawn as it looks from a random
    moment. With bursts, a process that begins at an arrival would have more than its share of a
    short run, the more so the less popular the model is.

    Args:
        shares: Models, and what part of the rate each has.
        num_requests: Of all models together.
        rate_per_s: Of all models together; ``inf`` sends everything at once.
        cv: Coefficient of variation of the gaps of each model.
        seed: Makes the draw repeatable.

    Returns:
        Times in seconds, in order, the first at 0, and the model that is asked.

    Source: AlpaServe (Li et al., OSDI 2023), section 6; Cox, Renewal Theory (1962), for the
    forward recurrence time.
    """
    if len(shares) == 1:
        model = shares[0].model
        return [(at_s, model) for at_s in gamma_arrivals(num_requests, rate_per_s, cv, seed)]
    if math.isinf(rate_per_s):
        return [(0.0, model) for model in draw_models(shares, num_requests, seed)]
    processes = (
        _process(each, rate_per_s, cv, random.Random(f"{seed}/{place}"))
        for place, each in enumerate(shares)
    )
    mix = list(itertools.islice(heapq.merge(*processes, key=itemgetter(0)), num_requests))
    return [(at_s - mix[0][0], model) for at_s, model in mix]


def _process(
    each: ModelShare, rate_per_s: float, cv: float, rng: random.Random
) -> Iterator[tuple[float, str]]:
    mean_s = 1.0 / (rate_per_s * each.share)
    shape = 1.0 / cv**2 if cv else math.inf
    # A gap that covers a random moment is long-lived, and the moment lies anywhere within it.
    covering_s = rng.gammavariate(shape + 1, mean_s / shape) if cv else mean_s
    at_s = rng.random() * covering_s
    while True:
        yield at_s, each.model
        at_s += rng.gammavariate(shape, mean_s / shape) if cv else mean_s
