"""How long prompts and outputs are, in tokens."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from fabric.core.errors import ConfigError
from fabric.core.traces import read_trace
from placement.workload.arrivals import check_number
from placement.workload.trace import FloatArray, IntArray

MAX_TOKENS = 2**31 - 1


class Lengths(Protocol):
    """Draws the lengths of requests."""

    def draw(self, rng: np.random.Generator, num_requests: int) -> tuple[IntArray, IntArray]:
        """Tokens of each request's prompt and of its output; at least 1 each."""
        ...


@dataclass(frozen=True, slots=True)
class Tokens:
    """A number of tokens: lognormal with a mean and a coefficient of variation, all equal at 0.

    Numbers are rounded, at least 1, and no more than ``max_tokens``: a cut tail lowers the mean.

    Raises:
        ConfigError: A number is out of bounds.
    """

    mean: float
    cv: float = 0.0
    max_tokens: int = MAX_TOKENS

    def __post_init__(self) -> None:
        check_number("mean", self.mean, is_positive=True)
        check_number("cv", self.cv)
        check_number("max_tokens", self.max_tokens, is_positive=True)

    def draw(self, rng: np.random.Generator, num_requests: int) -> IntArray:
        """So many numbers of tokens."""
        if self.cv == 0.0:
            return to_tokens(np.full(num_requests, self.mean), self.max_tokens)
        sigma = math.sqrt(math.log1p(self.cv**2))
        mu = math.log(self.mean) - sigma**2 / 2.0
        return to_tokens(rng.lognormal(mu, sigma, num_requests), self.max_tokens)


@dataclass(frozen=True, slots=True)
class DrawnLengths:
    """Prompts and outputs are drawn each by itself."""

    prompt: Tokens
    output: Tokens

    def draw(self, rng: np.random.Generator, num_requests: int) -> tuple[IntArray, IntArray]:
        """Tokens of each request's prompt and of its output."""
        return self.prompt.draw(rng, num_requests), self.output.draw(rng, num_requests)


@dataclass(frozen=True, slots=True, eq=False)
class EmpiricalLengths:
    """Prompts and outputs of recorded requests, drawn in pairs.

    Raises:
        ConfigError: There is no pair, or not an output for each prompt.
    """

    prompt_tokens: IntArray
    output_tokens: IntArray

    def __post_init__(self) -> None:
        if not len(self.prompt_tokens) or len(self.prompt_tokens) != len(self.output_tokens):
            raise ConfigError(
                f"there are {len(self.prompt_tokens)} prompts and {len(self.output_tokens)} "
                "outputs to draw lengths of; as many of both are needed, at least 1"
            )

    @classmethod
    def from_trace(cls, path: Path) -> "EmpiricalLengths":
        """The lengths of an Azure LLM trace (``.csv``) or a Mooncake one (``.jsonl``).

        Raises:
            ConfigError: It can't be read, a line is wrong, or there is none.
        """
        pairs = [(row.input_len, row.output_len) for row in read_trace(path)]
        if not pairs:
            raise ConfigError(f"{path} holds no requests")
        prompts, outputs = np.array(pairs, np.float64).T
        return cls(to_tokens(prompts), to_tokens(outputs))

    def draw(self, rng: np.random.Generator, num_requests: int) -> tuple[IntArray, IntArray]:
        """Tokens of each request's prompt and of its output."""
        places = rng.integers(0, len(self.prompt_tokens), num_requests)
        return self.prompt_tokens[places], self.output_tokens[places]


def to_tokens(numbers: FloatArray, max_tokens: int = MAX_TOKENS) -> IntArray:
    """Whole numbers from 1 to ``max_tokens``."""
    return np.clip(np.rint(numbers), 1, max_tokens).astype(np.int32)
