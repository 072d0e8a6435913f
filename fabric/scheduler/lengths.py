"""How many more tokens a sequence will give, guessed from those that ended before it."""

from collections import OrderedDict
from dataclasses import dataclass
from math import exp, log, log2

_BINS_PER_DOUBLING = 4
_NUM_BINS = 80
_EDGES: tuple[float, ...] = tuple(2.0 ** (i / _BINS_PER_DOUBLING) for i in range(_NUM_BINS + 1))
_MEMORY = 256
_PRIOR_SAMPLES = 4.0
_PRIOR_MEDIAN = 100.0
_PRIOR_SIGMA = 1.5
_MAX_HISTOGRAMS = 1024


@dataclass(frozen=True, slots=True)
class _Tails:
    """For each bin, the share of lengths in it, and of those beyond it the share and the sum."""

    shares: list[float]
    beyond: list[float]
    sums: list[float]

    @classmethod
    def of(cls, shares: list[float]) -> "_Tails":
        beyond, sums = [0.0] * _NUM_BINS, [0.0] * _NUM_BINS
        for i in range(_NUM_BINS - 1, 0, -1):
            beyond[i - 1] = beyond[i] + shares[i]
            sums[i - 1] = sums[i] + shares[i] * (_EDGES[i] + _EDGES[i + 1]) / 2
        return cls(shares, beyond, sums)

    def remaining(self, num_tokens: int) -> float:
        """The mean of what is left of the lengths that are greater."""
        age = max(1.0, float(num_tokens))
        i = _bin_of(age)
        end = _EDGES[i + 1]
        here = self.shares[i] * max(0.0, end - age) / (end - _EDGES[i])
        share = self.beyond[i] + here
        if share < 1e-12:
            # Longer than all that is known: it may as well be half-way.
            return age
        return max(1.0, (self.sums[i] + here * (age + end) / 2) / share - num_tokens)


class _Histogram:
    """Lengths in bins of equal ratio, each new one counting a little more than the one before."""

    def __init__(self) -> None:
        self._weights = [0.0] * _NUM_BINS
        self._newest = 1.0
        self._tails: _Tails | None = None
        self._num_added = 0
        self._num_next = 0

    def add(self, length: int) -> None:
        self._newest *= 1.0 + 1.0 / _MEMORY
        if self._newest > 1e9:
            self._weights = [weight / self._newest for weight in self._weights]
            self._newest = 1.0
        self._weights[_bin_of(float(length))] += self._newest
        self._num_added += 1
        if self._num_added >= self._num_next:
            self._tails = None
            self._num_next = self._num_added + min(self._num_added, _MEMORY) // 16

    def tails(self, prior: list[float]) -> _Tails:
        """With a prior that counts like a few samples; a sixteenth more lengths are taken in."""
        if self._tails is None:
            scale = 1.0 / self._newest
            weights = [
                weight * scale + _PRIOR_SAMPLES * share
                for weight, share in zip(self._weights, prior, strict=True)
            ]
            total = sum(weights)
            self._tails = _Tails.of([weight / total for weight in weights])
        return self._tails


class LengthEstimator:
    """Mean residual life of outputs by model and tenant: bounded, and weighted to the recent.

    A tenant of whom little is known is taken for the average of the model's tenants, and a model
    for a prior of wide spread (lognormal, sigma 1.5), so first guesses are poor. The mean
    residual life says what matters to a scheduler: where lengths are alike it falls with each
    token, where they have a heavy tail it grows.

    Source: the shortest expected remaining processing time of Sevcik (JACM 1974).
    """

    def __init__(self) -> None:
        self._unknown = _Tails.of(_lognormal_shares(_PRIOR_MEDIAN, _PRIOR_SIGMA))
        self._histograms: OrderedDict[tuple[str, str | None], _Histogram] = OrderedDict()

    def observe(self, model: str, tenant: str, num_tokens: int) -> None:
        """Learn that an output had so many tokens, at least 1."""
        for key in ((model, None), (model, tenant)):
            histogram = self._histograms.get(key)
            if histogram is None:
                histogram = self._histograms[key] = _Histogram()
            histogram.add(num_tokens)
            self._histograms.move_to_end(key)
        while len(self._histograms) > _MAX_HISTOGRAMS:
            self._histograms.popitem(last=False)

    def remaining(self, model: str, tenant: str, num_tokens: int) -> float:
        """How many tokens are to come on average after ``num_tokens``, at least 1."""
        return self._tails(model, tenant).remaining(num_tokens)

    def _tails(self, model: str, tenant: str) -> _Tails:
        of_model = self._histograms.get((model, None))
        if of_model is None:
            return self._unknown
        tails = of_model.tails(self._unknown.shares)
        of_tenant = self._histograms.get((model, tenant))
        return tails if of_tenant is None else of_tenant.tails(tails.shares)


def _bin_of(length: float) -> int:
    return min(int(_BINS_PER_DOUBLING * log2(length)), _NUM_BINS - 1)


def _lognormal_shares(median: float, sigma: float) -> list[float]:
    """A lognormal distribution in bins; those are of equal width on its scale."""
    weights = [exp(-((log(edge / median) / sigma) ** 2) / 2) for edge in _EDGES[:-1]]
    total = sum(weights)
    return [weight / total for weight in weights]
