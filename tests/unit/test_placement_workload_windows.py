"""Parts of traces, arrivals drawn anew for each, and requests as few kinds."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

from fabric.core.errors import ConfigError
from placement.workload.arrivals import GammaArrivals
from placement.workload.generate import ModelWorkload, generate_trace
from placement.workload.kinds import kinds_of
from placement.workload.lengths import DrawnLengths, Tokens
from placement.workload.measures import arrivals_of, gap_cvs, rates_per_s
from placement.workload.refit import Refit, fit_gamma, refit_trace
from placement.workload.trace import Trace
from placement.workload.windows import cut, scale_rate, split, train_test_windows, windows


def trace_of(*processes, duration_s=100.0, seed=1):
    lengths = DrawnLengths(Tokens(100, 1.0), Tokens(50, 1.0))
    models = [ModelWorkload(f"m{i}", each, lengths) for i, each in enumerate(processes)]
    return generate_trace(models, duration_s, seed)


def at(*times_s, duration_s):
    ones = np.ones(len(times_s), np.int32)
    return Trace(("m",), duration_s, np.array(times_s), 0 * ones, ones, ones)


def test_a_part_counts_time_from_its_start():
    part = cut(at(0.0, 2.0, 3.0, 5.0, duration_s=9.0), 2.0, 5.0)
    assert part.arrivals_s.tolist() == [0.0, 1.0]
    assert part.duration_s == 3.0


def test_windows_have_every_request_once():
    trace = at(0.0, 4.0, 5.0, 9.0, 11.0, duration_s=11.0)
    parts = windows(trace, 4.0)
    assert [part.arrivals_s.tolist() for part in parts] == [[0.0], [0.0, 1.0], [1.0, 3.0]]
    assert [part.duration_s for part in parts] == [4.0, 4.0, 3.0]


def test_a_trace_is_split_in_time():
    train, test = split(trace_of(GammaArrivals(5.0)), 0.25)
    assert (train.duration_s, test.duration_s) == (25.0, 75.0)
    assert len(train) + len(test) == len(trace_of(GammaArrivals(5.0)))


def test_pairs_of_windows_to_train_and_test_differ():
    trace = trace_of(GammaArrivals(20.0))
    pairs = train_test_windows(trace, 10.0, num_pairs=20, seed=1)
    assert len(pairs) == 20
    assert all(not np.array_equal(a.arrivals_s, b.arrivals_s) for a, b in pairs)
    again = train_test_windows(trace, 10.0, num_pairs=20, seed=1)
    assert np.array_equal(pairs[7][1].arrivals_s, again[7][1].arrivals_s)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda trace: cut(trace, 3.0, 3.0), "no part"),
        (lambda trace: windows(trace, 0.0), "window_s is 0.0"),
        (lambda trace: split(trace, 1.0), "train_share is 1.0"),
        (lambda trace: train_test_windows(trace, 60.0, 1, 0), "1 windows"),
        (lambda trace: scale_rate(trace, 0.0), "rate_scale is 0.0"),
        (lambda trace: Refit(0.0), "window_s is 0.0"),
        (lambda trace: kinds_of(trace, 0), "num_prompt_buckets is 0"),
    ],
)
def test_parts_that_cannot_be_are_refused(ask, message):
    with pytest.raises(ConfigError, match=message):
        ask(trace_of(GammaArrivals(1.0)))


def test_scaling_the_rate_keeps_the_requests():
    trace = trace_of(GammaArrivals(5.0, 3.0))
    fast = scale_rate(trace, 4.0)
    assert rates_per_s(fast) == pytest.approx(4.0 * rates_per_s(trace))
    assert gap_cvs(fast) == pytest.approx(gap_cvs(trace))
    assert np.array_equal(fast.prompt_tokens, trace.prompt_tokens)


@pytest.mark.parametrize("cv", [0.1, 1.0, 4.0])
def test_the_gamma_fit_is_the_likeliest(cv):
    gaps_s = np.random.default_rng(1).gamma(cv**-2, cv**2 / 3.0, 2000)
    shape, _, scale = scipy.stats.gamma.fit(gaps_s, floc=0)
    assert fit_gamma(gaps_s) == pytest.approx((1 / (shape * scale), shape**-0.5), rel=1e-6)


@pytest.mark.parametrize("cv", [0.5, 1.0, 3.0])
def test_refitted_windows_keep_rate_and_variation(cv):
    trace = trace_of(GammaArrivals(4.0, cv), GammaArrivals(1.0, cv), duration_s=6000.0)
    found = refit_trace(trace, Refit(600.0), seed=2)
    assert rates_per_s(found) == pytest.approx(rates_per_s(trace), rel=5 * cv / np.sqrt(6000.0))
    assert gap_cvs(found) == pytest.approx([cv, cv], rel=0.15)


def test_refitted_windows_keep_each_windows_count_in_the_mean():
    busy = [i * 0.1 for i in range(100)]
    trace = at(*busy, 65.0, 70.0, 75.0, duration_s=90.0)
    counts = np.array(
        [
            [len(part) for part in windows(refit_trace(trace, Refit(30.0), seed), 30.0)]
            for seed in range(200)
        ]
    )
    errors = counts.std(axis=0) / np.sqrt(200)
    assert np.all(np.abs(counts.mean(axis=0) - [100.0, 0.0, 3.0]) <= 4 * errors)


def test_refitting_scales_rate_and_variation():
    trace = trace_of(GammaArrivals(4.0, 1.0), duration_s=6000.0)
    found = refit_trace(trace, Refit(600.0, rate_scale=2.0, cv_scale=3.0), seed=2)
    assert rates_per_s(found) == pytest.approx(2.0 * rates_per_s(trace), rel=0.12)
    assert gap_cvs(found) == pytest.approx([3.0], rel=0.15)


def test_counting_windows_forget_how_bursty_they_were():
    trace = trace_of(GammaArrivals(4.0, 3.0), duration_s=6000.0)
    found = refit_trace(trace, Refit(6000.0, "counts"), seed=2)
    assert gap_cvs(found) == pytest.approx([1.0], rel=0.05)


def test_alpaserves_fit_goes_by_the_gaps_unless_they_are_too_short():
    slow = at(*(30.0 + 0.5 * i for i in range(100)), duration_s=100.0)
    fast = at(*(30.0 + 0.05 * i for i in range(100)), duration_s=100.0)

    def rate(trace):
        rounds = [refit_trace(trace, Refit(100.0, as_alpaserve=True), seed) for seed in range(20)]
        return np.mean([len(each) for each in rounds]) / 100.0

    assert rate(slow) == pytest.approx(2.0, rel=0.05)
    assert rate(fast) == pytest.approx(1.0, rel=0.05)


def test_arrivals_within_a_step_of_the_clock_are_spread_over_it():
    steps = np.repeat(np.arange(0.0, 300.0, 3.0), 6)
    found = refit_trace(at(*steps, duration_s=300.0), Refit(300.0), seed=1)
    # Six arrivals every 3 s may as well be one every 0.5 s.
    assert len(found) == pytest.approx(600, abs=2)
    assert gap_cvs(found)[0] < 0.01


def test_new_requests_have_lengths_of_their_window_and_model():
    trace = trace_of(GammaArrivals(3.0), GammaArrivals(3.0), duration_s=40.0)
    by_window = (trace.arrivals_s // 20.0).astype(np.int32)
    marked = replace(trace, prompt_tokens=10 * trace.models + by_window)
    found = refit_trace(marked, Refit(20.0), seed=1)
    expected = 10 * found.models + (found.arrivals_s // 20.0).astype(np.int32)
    assert np.array_equal(found.prompt_tokens, expected)


def test_equal_seeds_refit_equally():
    trace = trace_of(GammaArrivals(3.0, 2.0))
    first, again = (refit_trace(trace, Refit(20.0), seed=5) for _ in range(2))
    assert np.array_equal(first.arrivals_s, again.arrivals_s)
    assert not np.array_equal(
        first.arrivals_s[:5], refit_trace(trace, Refit(20.0), seed=6).arrivals_s[:5]
    )


def test_kinds_are_of_one_model_and_similar_lengths():
    trace = trace_of(GammaArrivals(20.0), GammaArrivals(5.0))
    found = kinds_of(trace, 4, 3)
    assert len(found) == 2 * 4 * 3
    assert np.array_equal(found.models[found.kinds], trace.models)
    assert found.counts.sum() == len(trace)
    for model in (0, 1):
        own = found.counts[found.models == model]
        assert own.max() <= 1.5 * own.min()
        means = found.prompt_tokens[found.models == model].reshape(4, 3)
        assert np.all(np.diff(means.mean(axis=1)) > 0.0)
        outputs = found.output_tokens[found.models == model].reshape(4, 3)
        assert np.all(np.diff(outputs, axis=1) > 0.0)


def test_kinds_have_the_means_of_their_requests():
    trace = trace_of(GammaArrivals(20.0))
    found = kinds_of(trace, 3, 2)
    for kind in range(len(found)):
        here = found.kinds == kind
        assert found.prompt_tokens[kind] == pytest.approx(trace.prompt_tokens[here].mean())
        assert found.output_tokens[kind] == pytest.approx(trace.output_tokens[here].mean())


def test_equal_lengths_are_one_kind():
    assert len(kinds_of(at(1.0, 2.0, 3.0, duration_s=4.0))) == 1
    assert len(kinds_of(at(duration_s=4.0))) == 0


def test_few_different_lengths_are_exact_kinds():
    trace = replace(at(1.0, 2.0, 3.0, duration_s=4.0), prompt_tokens=np.array([5, 9, 5], np.int32))
    found = kinds_of(trace)
    assert found.prompt_tokens.tolist() == [5.0, 9.0]
    assert found.kinds.tolist() == [0, 1, 0]


def test_windows_of_a_model_are_found_in_a_mix():
    trace = trace_of(GammaArrivals(3.0), GammaArrivals(7.0))
    parts = windows(trace, 25.0)
    joined = [arrivals_of(part, 1) + 25.0 * place for place, part in enumerate(parts)]
    assert np.concatenate(joined) == pytest.approx(arrivals_of(trace, 1))
