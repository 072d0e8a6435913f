"""What a router learns from what it has served."""

import pytest

from fabric.router.affinity import BLOCK_TOKENS, MAX_BLOCKS, PrefixAffinity, prefix_hashes
from fabric.router.experience import (
    DEFAULT_OUTPUT_TOKENS,
    MAX_RATIO,
    MIN_OF_TENANT,
    MIN_RATIO,
    RATIO_HALF_LIFE_S,
    Calibration,
    OutputLengths,
)
from fabric.router.forecast import Forecast
from tests.unit.routing_world import request


def test_outputs_are_expected_to_be_as_long_as_the_models_last_ones():
    lengths = OutputLengths()
    assert lengths.expected("m", "") == DEFAULT_OUTPUT_TOKENS
    for _ in range(1000):
        lengths.note("m", "", 10)
    assert lengths.expected("m", "new") == pytest.approx(10, abs=0.1)
    for _ in range(1000):
        lengths.note("m", "", 50)
    assert lengths.expected("m", "new") == pytest.approx(50, abs=0.1)
    assert lengths.expected("other", "") == DEFAULT_OUTPUT_TOKENS


def test_a_tenant_that_has_been_served_a_few_times_has_lengths_of_its_own():
    lengths = OutputLengths()
    for _ in range(100):
        lengths.note("m", "long", 900)
    for _ in range(MIN_OF_TENANT - 1):
        lengths.note("m", "short", 10)
    assert lengths.expected("m", "short") > 100
    lengths.note("m", "short", 10)
    assert lengths.expected("m", "short") == pytest.approx(10)


def test_a_bounded_number_of_tenants_has_lengths_of_its_own():
    lengths = OutputLengths(max_tenants=2)
    for tenant in ("a", "b", "c"):
        for _ in range(MIN_OF_TENANT):
            lengths.note("m", tenant, 10)
    assert lengths.expected("m", "c") == pytest.approx(10)
    assert lengths.expected("m", "a") == lengths.expected("m", "never seen") > 10


def test_a_group_that_is_slower_than_measured_has_its_predictions_multiplied():
    calibration = Calibration()
    assert calibration.ratio("left", 0.0) == 1.0
    for _ in range(100):
        calibration.note("left", 2.0, 1.0, 0.0)
    assert calibration.ratio("left", 0.0) == pytest.approx(2.0, rel=0.01)
    assert calibration.ratio("right", 0.0) == 1.0


def test_a_prediction_that_was_multiplied_is_compared_as_it_was_before():
    calibration = Calibration()
    for _ in range(100):
        ratio = calibration.ratio("left", 0.0)
        forecast = Forecast(ratio, 0.1 * ratio, 2 * ratio, 0.0, ratio, ratio)
        assert forecast.profiled_tpot_s == pytest.approx(0.1)
        calibration.note("left", 2.0, forecast.profiled_ttft_s, 0.0)
    assert calibration.ratio("left", 0.0) == pytest.approx(2.0, rel=0.01)


@pytest.mark.parametrize(("ttft_s", "bound"), [(1e6, MAX_RATIO), (1e-6, MIN_RATIO)])
def test_the_ratio_is_bounded(ttft_s, bound):
    calibration = Calibration()
    for _ in range(1000):
        calibration.note("left", ttft_s, 1.0, 0.0)
        assert MIN_RATIO <= calibration.ratio("left", 0.0) <= MAX_RATIO
    assert calibration.ratio("left", 0.0) == pytest.approx(bound)


def test_the_ratio_is_forgotten_where_nothing_is_served_any_more():
    calibration = Calibration()
    for _ in range(1000):
        calibration.note("left", 4.0, 1.0, 0.0)
    assert calibration.ratio("left", RATIO_HALF_LIFE_S) == pytest.approx(2.0)
    assert calibration.ratio("left", 100 * RATIO_HALF_LIFE_S) == pytest.approx(1.0)


def test_what_was_not_predicted_teaches_nothing():
    calibration = Calibration()
    calibration.note("left", 9.0, 0.0, 0.0)
    assert calibration.ratio("left", 0.0) == 1.0


def test_groups_that_are_gone_are_forgotten():
    calibration, affinity = Calibration(), PrefixAffinity()
    calibration.note("left", 4.0, 1.0, 0.0)
    affinity.note("left", (1, 2))
    for learned in (calibration, affinity):
        learned.keep_only({"right"})
    assert calibration.ratio("left", 0.0) == 1.0
    assert affinity.num_blocks("left", (1, 2)) == 0


def prompt(*blocks, **fields):
    return request(tuple(token for token in blocks for _ in range(BLOCK_TOKENS)), **fields)


def test_prompts_share_as_many_blocks_as_they_begin_with():
    affinity = PrefixAffinity()
    affinity.note("left", prefix_hashes(prompt(1, 2, 3)))
    assert affinity.num_blocks("left", prefix_hashes(prompt(1, 2, 9, 3))) == 2
    assert affinity.num_blocks("left", prefix_hashes(prompt(2, 1))) == 0
    assert affinity.num_blocks("right", prefix_hashes(prompt(1, 2, 3))) == 0


def test_prompts_of_other_salts_share_nothing():
    ours, theirs = prefix_hashes(prompt(1)), prefix_hashes(prompt(1, cache_salt="x"))
    assert ours != theirs


def test_only_whole_blocks_count_and_not_too_many():
    assert prefix_hashes(request((1,) * (BLOCK_TOKENS - 1))) == ()
    assert len(prefix_hashes(prompt(*range(MAX_BLOCKS + 5)))) == MAX_BLOCKS


def test_the_end_of_the_prefix_used_longest_ago_is_forgotten_first():
    affinity = PrefixAffinity(max_hashes=4)
    affinity.note("left", (1, 2, 3))
    affinity.note("left", (7, 8))
    assert affinity.num_blocks("left", (7, 8)) == 2
    assert affinity.num_blocks("left", (1, 2, 3)) == 2
