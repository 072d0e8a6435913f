"""How long the requests of the benchmarks are, by the name of a trace, and when they arrive.

``azure_conv`` and ``azure_code`` are drawn from real requests (Azure LLM inference traces of 2023,
CC-BY-4.0; Patel et al., ISCA 2024), in ``FABRIC_TEST_DATA`` or shared/data beside the checkout.
The others are synthetic:

    alpaca_like     short instructions: prompts of 20 tokens in the mean (cv 0.6), outputs of 58
                    (cv 1.0), both lognormal; the means are those of the vLLM paper's figure 11
    sharegpt_like   first turns of chats: prompts lognormal, of 112 in the mean and 33 in the
                    median, outputs gamma, of 323 (cv 0.68), as the first turns of ShareGPT
    heavy_tail      lognormal, sigma of the logarithm 1.5: outputs of 128 in the mean, prompts of 64
    bimodal_90_10   nine outputs of 16 tokens for one of 800, prompts of 32
    equal           prompts of 32, outputs of 64
"""

import math
import os
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

from fabric.cli.bench_workload import gamma_arrivals
from fabric.core.traces import read_trace

Lengths = list[tuple[int, int]]

DATA = Path(os.environ.get("FABRIC_TEST_DATA", Path(__file__).resolve().parents[3] / "shared/data"))


def draw_lengths(
    name: str, num_requests: int, seed: int, scale: float = 1.0, max_len: int | None = None
) -> Lengths:
    """Draw (prompt, output) lengths in tokens, the same ones for the same seed.

    Args:
        name: A trace of ``NAMES``.
        num_requests: How many.
        seed: Makes the draw repeatable.
        scale: Divides all lengths, rounding up, for models with short contexts.
        max_len: Bound on prompt and output together: the output is cut to half of it, the
            prompt to what is left.
    """
    pairs = _DRAWS[name](num_requests, random.Random(seed))
    lengths = [(math.ceil(prompt / scale), math.ceil(output / scale)) for prompt, output in pairs]
    return lengths if max_len is None else [_cut(*pair, max_len) for pair in lengths]


def poisson_arrivals(num_requests: int, rate_per_s: float, seed: int) -> list[float]:
    """Times in seconds, the first at 0, whose gaps are exponential."""
    return gamma_arrivals(num_requests, rate_per_s, 1.0, seed)


def _cut(prompt: int, output: int, max_len: int) -> tuple[int, int]:
    output = min(output, max_len // 2)
    return min(prompt, max_len - output), output


def _azure(name: str, num_requests: int, rng: random.Random) -> Lengths:
    rows = list(read_trace(DATA / f"traces/azure_llm_2023_{name}.csv"))
    return [(row.input_len, row.output_len) for row in rng.choices(rows, k=num_requests)]


def _alpaca_like(num_requests: int, rng: random.Random) -> Lengths:
    prompt, output = (partial(_lognormal, rng, *shape) for shape in ((20, 0.55), (58, 0.83)))
    return [(prompt(), output()) for _ in range(num_requests)]


def _sharegpt_like(num_requests: int, rng: random.Random) -> Lengths:
    cv = 0.68
    outputs = (rng.gammavariate(1 / cv**2, 323 * cv**2) for _ in range(num_requests))
    return [(_lognormal(rng, 112, 1.56), math.ceil(output)) for output in outputs]


def _heavy_tail(num_requests: int, rng: random.Random) -> Lengths:
    return [(_lognormal(rng, 64, 1.5), _lognormal(rng, 128, 1.5)) for _ in range(num_requests)]


def _bimodal(num_requests: int, rng: random.Random) -> Lengths:
    return [(32, 800 if rng.random() < 0.1 else 16) for _ in range(num_requests)]


def _equal(num_requests: int, rng: random.Random) -> Lengths:
    return [(32, 64)] * num_requests


def _lognormal(rng: random.Random, mean: float, sigma: float) -> int:
    """A whole number of at least 1; ``sigma`` is that of the logarithm."""
    return math.ceil(rng.lognormvariate(math.log(mean) - sigma**2 / 2, sigma))


_DRAWS: dict[str, Callable[[int, random.Random], Lengths]] = {
    "azure_conv": partial(_azure, "conv"),
    "azure_code": partial(_azure, "code"),
    "alpaca_like": _alpaca_like,
    "sharegpt_like": _sharegpt_like,
    "heavy_tail": _heavy_tail,
    "bimodal_90_10": _bimodal,
    "equal": _equal,
}
NAMES = tuple(_DRAWS)
