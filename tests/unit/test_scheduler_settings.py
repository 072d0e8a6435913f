"""What one scheduler is told is checked when it is said."""

from math import nan

import pytest

from fabric.core.errors import ConfigError
from fabric.scheduler.settings import FairnessConfig


@pytest.mark.parametrize("lag_s", [0.0, -0.5, nan])
def test_turns_that_never_end_are_refused(lag_s: float) -> None:
    with pytest.raises(ConfigError, match=f"lag_s is {lag_s:g}; above 0"):
        FairnessConfig(lag_s)


@pytest.mark.parametrize("weight", [0.0, -1.0, nan])
def test_whoever_would_be_owed_nothing_is_refused(weight: float) -> None:
    with pytest.raises(ConfigError, match=f"model_weights: 'm' has {weight:g}; above 0"):
        FairnessConfig(model_weights={"n": 1.0, "m": weight})
    with pytest.raises(ConfigError, match=f"tenant_weights: 'gold' has {weight:g}; above 0"):
        FairnessConfig(tenant_weights={"gold": weight})


def test_without_turns_there_is_no_lag() -> None:
    assert FairnessConfig(None).lag_s is None
