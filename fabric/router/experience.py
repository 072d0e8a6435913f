"""What a router learns from the requests that it has served: output lengths, and its own errors."""

import math
from collections import OrderedDict

# Before anything is known; a prior that one request in a few overrules.
DEFAULT_OUTPUT_TOKENS = 128.0
# Later requests count more: the mean is over about so many.
WINDOW = 64
MIN_OF_TENANT = 8
MAX_TENANTS = 4096

MIN_RATIO, MAX_RATIO = 0.5, 4.0
RATIO_WEIGHT = 0.1
# An old ratio is worth half after so long: else one that refuses everything would stay for ever.
RATIO_HALF_LIFE_S = 30.0


class OutputLengths:
    """Running means of how many tokens outputs have, by model, and by model and tenant."""

    def __init__(self, max_tenants: int = MAX_TENANTS) -> None:
        self._max_tenants = max_tenants
        self._of_models: dict[str, tuple[int, float]] = {}
        self._of_tenants: OrderedDict[tuple[str, str], tuple[int, float]] = OrderedDict()

    def expected(self, model: str, tenant: str) -> float:
        """Tokens of one more output: the tenant's mean if it has had a few, else the model's."""
        count, mean = self._of_tenants.get((model, tenant), (0, 0.0))
        if count >= MIN_OF_TENANT:
            return mean
        return self._of_models.get(model, (0, DEFAULT_OUTPUT_TOKENS))[1]

    def note(self, model: str, tenant: str, num_tokens: float) -> None:
        """Count a complete output."""
        # The prior counts as one output.
        known = self._of_models.get(model, (1, DEFAULT_OUTPUT_TOKENS))
        self._of_models[model] = _moved(known, num_tokens)
        key = (model, tenant)
        self._of_tenants[key] = _moved(self._of_tenants.get(key, (0, 0.0)), num_tokens)
        self._of_tenants.move_to_end(key)
        if len(self._of_tenants) > self._max_tenants:
            self._of_tenants.popitem(last=False)


class Calibration:
    """How long something really takes on each group, as a ratio of what was predicted.

    A bounded running mean of logarithms, so that twice and half cancel out. Without news it goes
    back to 1.
    """

    def __init__(self) -> None:
        self._logs: dict[str, tuple[float, float]] = {}

    def ratio(self, group: str, now: float) -> float:
        """What to multiply predictions by, from ``MIN_RATIO`` to ``MAX_RATIO``."""
        known = self._logs.get(group)
        return 1.0 if known is None else math.exp(_faded(*known, now))

    def note(self, group: str, found_s: float, profiled_s: float, now: float) -> None:
        """Compare what a thing took with what the measured times alone gave for it."""
        if profiled_s <= 0.0:
            return
        found = math.log(min(max(found_s / profiled_s, MIN_RATIO), MAX_RATIO))
        last = _faded(*self._logs.get(group, (0.0, now)), now)
        self._logs[group] = (last + RATIO_WEIGHT * (found - last), now)

    def keep_only(self, groups: set[str]) -> None:
        """Drop all groups but these."""
        for group in self._logs.keys() - groups:
            del self._logs[group]


def _moved(known: tuple[int, float], value: float) -> tuple[int, float]:
    count, mean = known
    count = min(count + 1, WINDOW)
    return count, mean + (value - mean) / count


def _faded(log: float, noted_s: float, now: float) -> float:
    return log * math.exp2(-max(0.0, now - noted_s) / RATIO_HALF_LIFE_S)
