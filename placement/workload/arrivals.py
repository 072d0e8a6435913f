"""Arrival processes: when one model's requests come."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fabric.core.errors import ConfigError
from placement.workload.trace import FloatArray


class ArrivalProcess(Protocol):
    """Draws the times of arrivals."""

    @property
    def rate_per_s(self) -> float:
        """Arrivals a second in the mean."""
        ...

    def draw(self, rng: np.random.Generator, duration_s: float) -> FloatArray:
        """Times from 0 to before ``duration_s``, ascending."""
        ...


@dataclass(frozen=True, slots=True)
class GammaArrivals:
    """Gaps are gamma distributed, with the coefficient of variation ``cv``: 0 is a clock.

    The process was under way before 0: its first gap is what is left of one at a random moment,
    so that a second has ``rate_per_s`` arrivals in the mean wherever it lies. With
    ``starts_at_arrival`` the first gap is a whole one from 0, as in AlpaServe's workloads; then
    a draw, however long, has about (cv² - 1) / 2 arrivals more.

    Raises:
        ConfigError: The rate or the cv is not a finite number of at least 0.

    Source: AlpaServe (Li et al., OSDI 2023), section 6.1; Cox, Renewal Theory (1962), sections
    4.2 and 5.2.
    """

    rate_per_s: float
    cv: float = 1.0
    starts_at_arrival: bool = False

    def __post_init__(self) -> None:
        for name in ("rate_per_s", "cv"):
            check_number(name, getattr(self, name))

    def draw(self, rng: np.random.Generator, duration_s: float) -> FloatArray:
        """Times from 0 to before ``duration_s``, ascending."""
        if self.rate_per_s == 0.0:
            return np.empty(0)
        at_s = self._gap_s(rng) if self.starts_at_arrival else self._rest_of_gap_s(rng)
        parts = [np.array([at_s])]
        while parts[-1][-1] < duration_s:
            left_s = duration_s - parts[-1][-1]
            num_gaps = int(1.2 * self.rate_per_s * left_s) + 16
            parts.append(parts[-1][-1] + np.cumsum(self._gaps_s(rng, num_gaps)))
        times_s = np.concatenate(parts)
        return times_s[: np.searchsorted(times_s, duration_s)]

    def _gaps_s(self, rng: np.random.Generator, num_gaps: int) -> FloatArray:
        if self.cv == 0.0:
            return np.full(num_gaps, 1.0 / self.rate_per_s)
        return rng.gamma(self.cv**-2, self.cv**2 / self.rate_per_s, num_gaps)

    def _gap_s(self, rng: np.random.Generator) -> float:
        return float(self._gaps_s(rng, 1)[0])

    def _rest_of_gap_s(self, rng: np.random.Generator) -> float:
        # A gap that covers a random moment is a long one, and the moment is anywhere in it.
        if self.cv == 0.0:
            return float(rng.random() / self.rate_per_s)
        covering_s = rng.gamma(self.cv**-2 + 1.0, self.cv**2 / self.rate_per_s)
        return float(rng.random() * covering_s)


@dataclass(frozen=True, slots=True)
class MmppArrivals:
    """Poisson arrivals whose rate changes: each state has one, and lasts ``mean_s`` in the mean.

    Stays are exponential, and the next state is any other one, equally likely.

    Raises:
        ConfigError: There is no state, not a time for each, or one of them is not above 0.

    Source: AlpaServe's public code, uniform Markov-modulated Poisson process.
    """

    state_rates_per_s: tuple[float, ...]
    mean_s: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.mean_s or len(self.mean_s) != len(self.state_rates_per_s):
            raise ConfigError(
                f"an MMPP has {len(self.state_rates_per_s)} rates and {len(self.mean_s)} mean "
                "times; as many of both are needed, at least 1"
            )
        for rate in self.state_rates_per_s:
            check_number("rate_per_s", rate)
        for mean_s in self.mean_s:
            check_number("mean_s", mean_s, is_positive=True)

    @property
    def rate_per_s(self) -> float:
        """Arrivals a second in the mean."""
        return float(np.dot(self.state_rates_per_s, self.mean_s) / np.sum(self.mean_s))

    def draw(self, rng: np.random.Generator, duration_s: float) -> FloatArray:
        """Times from 0 to before ``duration_s``, ascending."""
        num_states = len(self.mean_s)
        state = int(rng.choice(num_states, p=np.array(self.mean_s) / np.sum(self.mean_s)))
        parts, at_s = [np.empty(0)], 0.0
        while at_s < duration_s:
            end_s = min(at_s + rng.exponential(self.mean_s[state]), duration_s)
            num_arrivals = rng.poisson(self.state_rates_per_s[state] * (end_s - at_s))
            parts.append(np.sort(rng.uniform(at_s, end_s, num_arrivals)))
            at_s = end_s
            if num_states > 1:
                state = (state + int(rng.integers(1, num_states))) % num_states
        return np.concatenate(parts)


def poisson_arrivals(rate_per_s: float) -> GammaArrivals:
    """Arrivals that know nothing of each other: gamma gaps with a cv of 1."""
    return GammaArrivals(rate_per_s, 1.0)


def check_number(name: str, value: float, *, is_positive: bool = False) -> None:
    """Refuse what is not finite, negative, or 0 if it must be positive.

    Raises:
        ConfigError: Names the value.
    """
    if not np.isfinite(value) or value < 0.0 or (is_positive and value == 0.0):
        allowed = "above 0" if is_positive else "at least 0"
        raise ConfigError(f"{name} is {value}; a finite number {allowed} is needed")
