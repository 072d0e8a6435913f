"""Open-loop load on many models: how popular each is, when requests come, and how long they are."""

import heapq
import random
from collections.abc import Sequence
from dataclasses import dataclass

from lengths import Lengths, draw_lengths

from fabric.core.request import GenerationRequest, Objectives
from fabric.core.sampling import SamplingParams

NUM_BEFORE = 50
NO_OBJECTIVES = Objectives()


@dataclass(frozen=True)
class Model:
    """A model to send requests to, and the objectives that its requests have."""

    name: str
    vocab_size: int
    objectives: Objectives = NO_OBJECTIVES


@dataclass(frozen=True)
class Load:
    """Requests, and when each arrives at a rate of one a second altogether; ``names`` the models'.

    At another rate, all times are divided by it: the pattern stays.
    """

    models: tuple[int, ...]
    lengths: Lengths
    arrivals_s: tuple[float, ...]

    def at(self, rate_per_s: float) -> list[float]:
        """The arrivals at a rate, in seconds."""
        return [arrival_s / rate_per_s for arrival_s in self.arrivals_s]


def power_law(num_models: int, exponent: float) -> list[float]:
    """The share of the requests that each model has, ``(i + 1) ** -exponent`` of the sum."""
    weights = [(i + 1) ** -exponent for i in range(num_models)]
    return [weight / sum(weights) for weight in weights]


def draw_load(
    shares: Sequence[float], cv: float, num_requests: int, seed: int, lengths: Lengths
) -> Load:
    """Gamma arrivals for each model by itself, merged; the first ``num_requests`` of all.

    Times are stretched so that the rate is exactly one a second: with few bursts in a run, what is
    drawn is far off, and rates of different seeds could not be compared.

    Source: AlpaServe (Li et al., OSDI 2023), section 6.1.
    """
    rng = random.Random(f"{seed} {cv}")
    streams = [gamma_stream(share, cv, num_requests, rng.randrange(2**32)) for share in shares]
    tagged = ([(arrival_s, i) for arrival_s in stream] for i, stream in enumerate(streams))
    first = list(heapq.merge(*tagged))[:num_requests]
    stretch = num_requests / first[-1][0]
    return Load(
        tuple(model for _, model in first),
        lengths[:num_requests],
        tuple(arrival_s * stretch for arrival_s, _ in first),
    )


def azure_lengths(num_requests: int, seed: int, scale: float, context: int) -> Lengths:
    """Lengths of Azure's conversations, divided by ``scale`` to fit a context."""
    return draw_lengths("azure_conv", num_requests, seed, scale, context)


def make_requests(load: Load, models: Sequence[Model], seed: int) -> list[GenerationRequest]:
    """A request for each arrival, named by its number, with a random prompt."""
    rng = random.Random(seed)
    requests = []
    for number, (model, lengths) in enumerate(zip(load.models, load.lengths, strict=True)):
        chosen, (num_prompt, num_output) = models[model], lengths
        requests.append(
            GenerationRequest(
                str(number),
                chosen.name,
                tuple(rng.randrange(3, chosen.vocab_size) for _ in range(num_prompt)),
                SamplingParams(max_tokens=num_output, temperature=0.0, ignore_eos=True),
                objectives=chosen.objectives,
            )
        )
    return requests


def gamma_stream(rate_per_s: float, cv: float, num_requests: int, seed: int) -> list[float]:
    """Arrivals after a time at which the process has been going on for long, from 0.

    Processes that all began with an arrival would all begin with a burst.
    """
    rng, shape = random.Random(seed), 1.0 / cv**2
    mean_s, times_s = 1.0 / rate_per_s, list[float]()
    time_s = -NUM_BEFORE * cv**2 * mean_s
    while len(times_s) < num_requests:
        time_s += rng.gammavariate(shape, mean_s / shape)
        if time_s >= 0.0:
            times_s.append(time_s)
    return times_s
