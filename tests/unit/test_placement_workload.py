"""Workloads that are drawn: rates, burstiness and lengths are what was asked for."""

import numpy as np
import pytest

from fabric.core.errors import ConfigError
from placement.workload.arrivals import GammaArrivals, MmppArrivals, poisson_arrivals
from placement.workload.generate import ModelWorkload, generate_trace
from placement.workload.lengths import DrawnLengths, EmpiricalLengths, Tokens
from placement.workload.measures import arrivals_of, gap_cvs, rates_per_s
from placement.workload.popularity import power_law_rates, shared_rates

SHORT = DrawnLengths(Tokens(32), Tokens(16))


def rng(seed=0):
    return np.random.default_rng(seed)


def mean_count(process, duration_s, num_draws=3000):
    """The mean number of arrivals of many short draws, and its standard error."""
    counts = [len(process.draw(rng(seed), duration_s)) for seed in range(num_draws)]
    return np.mean(counts), np.std(counts) / np.sqrt(num_draws)


@pytest.mark.parametrize("cv", [0.5, 1.0, 4.0])
def test_gamma_gaps_have_the_rate_and_variation_asked_for(cv):
    times_s = GammaArrivals(8.0, cv).draw(rng(), 20_000.0)
    gaps_s = np.diff(times_s)
    # The standard error of a mean of gaps is cv over the root of their number.
    assert len(times_s) / 20_000.0 == pytest.approx(8.0, rel=4 * cv / 400)
    assert gaps_s.std() / gaps_s.mean() == pytest.approx(cv, rel=0.05)
    assert times_s[0] >= 0.0
    assert times_s[-1] < 20_000.0


def test_without_variation_arrivals_are_a_clock():
    times_s = GammaArrivals(4.0, 0.0).draw(rng(), 10.0)
    assert len(times_s) == 40
    assert np.diff(times_s) == pytest.approx(0.25)
    assert GammaArrivals(4.0, 0.0, starts_at_arrival=True).draw(rng(), 0.6).tolist() == [0.25, 0.5]


@pytest.mark.parametrize("cv", [0.0, 0.5, 4.0])
def test_short_draws_of_a_process_under_way_have_its_rate(cv):
    mean, error = mean_count(GammaArrivals(0.5, cv), 4.0)
    assert mean == pytest.approx(2.0, abs=4 * error + 1e-9)


def test_draws_that_start_at_an_arrival_have_more_of_bursts():
    mean, error = mean_count(GammaArrivals(10.0, 4.0, starts_at_arrival=True), 60.0)
    # Cox, Renewal Theory, section 4.2: (cv^2 - 1) / 2 more.
    assert mean - 600.0 == pytest.approx((16.0 - 1.0) / 2.0, abs=4 * error)


def test_poisson_gaps_vary_as_much_as_they_last():
    assert poisson_arrivals(3.0) == GammaArrivals(3.0, 1.0)


def test_a_rate_of_zero_asks_nothing():
    assert len(GammaArrivals(0.0).draw(rng(), 100.0)) == 0


def test_an_mmpp_has_the_mean_rate_of_its_states():
    process = MmppArrivals((1.0, 20.0, 0.0), (3.0, 1.0, 2.0))
    assert process.rate_per_s == pytest.approx(23.0 / 6.0)
    times_s = process.draw(rng(), 30_000.0)
    assert len(times_s) / 30_000.0 == pytest.approx(process.rate_per_s, rel=0.05)
    assert np.all(np.diff(times_s) >= 0.0)
    mean, error = mean_count(process, 2.0, 1000)
    assert mean == pytest.approx(2.0 * process.rate_per_s, abs=4 * error)


def test_an_mmpp_of_one_state_is_poisson():
    gaps_s = np.diff(MmppArrivals((5.0,), (2.0,)).draw(rng(), 4000.0))
    assert gaps_s.std() / gaps_s.mean() == pytest.approx(1.0, rel=0.05)


def test_an_mmpp_is_burstier_than_poisson():
    gaps_s = np.diff(MmppArrivals((50.0, 1.0), (1.0, 9.0)).draw(rng(), 4000.0))
    assert gaps_s.std() / gaps_s.mean() > 2.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GammaArrivals(-1.0), "rate_per_s is -1.0"),
        (lambda: GammaArrivals(1.0, float("nan")), "cv is nan"),
        (lambda: MmppArrivals((1.0,), ()), "1 rates and 0 mean times"),
        (lambda: MmppArrivals((1.0,), (0.0,)), "mean_s is 0.0"),
        (lambda: Tokens(0.0), "mean is 0.0"),
        (lambda: EmpiricalLengths(np.empty(0, np.int32), np.empty(0, np.int32)), "0 prompts"),
        (lambda: power_law_rates(1.0, 0), "no model"),
        (lambda: shared_rates(1.0, np.array([1.0, -1.0])), "weight is -1.0"),
        (lambda: generate_trace([], 0.0, 1), "duration_s is 0.0"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_power_law_rates_fall_with_the_models_number():
    rates = power_law_rates(6.0, 3, exponent=1.0)
    assert rates == pytest.approx(np.array([6.0, 3.0, 2.0]) * 6.0 / 11.0)
    assert power_law_rates(6.0, 3, exponent=0.0) == pytest.approx([2.0, 2.0, 2.0])


def test_lognormal_lengths_have_the_mean_and_variation_asked_for():
    tokens = Tokens(300.0, 0.8).draw(rng(), 50_000)
    assert tokens.dtype == np.int32
    assert tokens.mean() == pytest.approx(300.0, rel=0.02)
    assert tokens.std() / tokens.mean() == pytest.approx(0.8, rel=0.05)
    assert tokens.min() >= 1


def test_lengths_are_capped_and_fixed():
    assert Tokens(300.0, 2.0, max_tokens=310).draw(rng(), 1000).max() == 310
    assert Tokens(7.0).draw(rng(), 3).tolist() == [7, 7, 7]


def test_empirical_lengths_keep_prompt_and_output_together():
    pairs = EmpiricalLengths(np.array([1, 2, 3], np.int32), np.array([10, 20, 30], np.int32))
    prompts, outputs = pairs.draw(rng(), 100)
    assert set(prompts.tolist()) == {1, 2, 3}
    assert (outputs == 10 * prompts).all()


def test_lengths_are_read_from_a_trace(tmp_path):
    path = tmp_path / "lengths.jsonl"
    path.write_text('{"timestamp": 0, "input_length": 9, "output_length": 0}\n')
    prompts, outputs = EmpiricalLengths.from_trace(path).draw(rng(), 2)
    assert (prompts.tolist(), outputs.tolist()) == ([9, 9], [1, 1])
    path.write_text("")
    with pytest.raises(ConfigError, match="holds no requests"):
        EmpiricalLengths.from_trace(path)


def mix(rates, seed=3):
    models = [
        ModelWorkload(
            f"m{place}", GammaArrivals(rate, 2.0), DrawnLengths(Tokens(50, 1.0), Tokens(9))
        )
        for place, rate in enumerate(rates)
    ]
    return generate_trace(models, 2000.0, seed)


def test_a_trace_has_each_models_requests_in_order():
    trace = mix([2.0, 1.0, 0.5])
    assert trace.names == ("m0", "m1", "m2")
    assert np.all(np.diff(trace.arrivals_s) >= 0.0)
    assert rates_per_s(trace) == pytest.approx([2.0, 1.0, 0.5], rel=0.25)
    assert gap_cvs(trace) == pytest.approx([2.0] * 3, rel=0.2)
    assert {len(trace.models), len(trace.prompt_tokens), len(trace.output_tokens)} == {len(trace)}


def test_equal_seeds_give_equal_traces():
    first, again, other = mix([2.0, 1.0]), mix([2.0, 1.0]), mix([2.0, 1.0], seed=4)
    assert np.array_equal(first.arrivals_s, again.arrivals_s)
    assert np.array_equal(first.prompt_tokens, again.prompt_tokens)
    assert not np.array_equal(first.arrivals_s[:50], other.arrivals_s[:50])


def test_a_models_requests_stay_when_anothers_rate_changes():
    first, second = mix([2.0, 1.0]), mix([5.0, 1.0])
    assert np.array_equal(arrivals_of(first, 1), arrivals_of(second, 1))
    assert np.array_equal(
        first.prompt_tokens[first.models == 1], second.prompt_tokens[second.models == 1]
    )


def test_no_requests_are_a_trace_too():
    trace = generate_trace([ModelWorkload("m", GammaArrivals(0.0), SHORT)], 5.0, 1)
    assert len(trace) == 0
    assert rates_per_s(trace).tolist() == [0.0]
    assert np.isnan(gap_cvs(trace)).all()
