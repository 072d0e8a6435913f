"""Latency, throughput and goodput by hand-made records."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from fabric.cli.bench_metrics import (
    RequestRecord,
    busiest_second,
    cold_starts,
    goodput,
    latency_summary,
    most_at_once,
    percentile,
    summarize,
    throughput,
)
from fabric.cli.bench_models import ModelShare
from fabric.cli.bench_report import BenchSettings, build_result, measured_rate, tables

FAST = RequestRecord(0.0, 10, 5, ttft_s=0.1, itls_s=(0.1, 0.1, 0.1, 0.1), e2e_s=0.5)
SLOW = RequestRecord(1.0, 20, 3, ttft_s=0.4, itls_s=(0.3, 0.3), e2e_s=1.0)
SHORT = RequestRecord(2.0, 30, 1, ttft_s=0.2, e2e_s=0.2)
FAILED = RequestRecord(3.0, 40, 2, ttft_s=0.1, e2e_s=0.1, error="Unavailable: died")
RECORDS = (FAST, SLOW, SHORT, FAILED)


def settings_of(*models, slos_ms=None, request_rate=4.0):
    shares = tuple(ModelShare(model, 1 / len(models)) for model in models)
    return BenchSettings(shares, request_rate, 1.0, None, (50.0, 99.0), slos_ms or {})


@pytest.mark.parametrize(
    ("percent", "value"), [(0, 1.0), (25, 1.75), (50, 2.5), (99, 3.97), (100, 4.0)]
)
def test_percentiles_are_interpolated(percent, value):
    assert percentile([1.0, 2.0, 3.0, 4.0], percent) == pytest.approx(value)


def test_tpot_leaves_the_first_token_out():
    assert FAST.tpot_s == pytest.approx(0.1)
    assert SLOW.tpot_s == pytest.approx(0.3)
    assert SHORT.tpot_s == 0.0


def test_summary_is_in_milliseconds():
    assert summarize("ttft", [0.001, 0.003], [50, 99.9]) == pytest.approx(
        {
            "mean_ttft_ms": 2.0,
            "median_ttft_ms": 2.0,
            "std_ttft_ms": 1.0,
            "p50_ttft_ms": 2.0,
            "p99.9_ttft_ms": 2.998,
        }
    )


def test_latencies_count_completed_requests_and_tpot_only_longer_replies():
    summary = latency_summary(RECORDS, [99])
    assert summary["median_ttft_ms"] == pytest.approx(200)
    assert summary["mean_tpot_ms"] == pytest.approx(200)
    assert summary["mean_itl_ms"] == pytest.approx(1000 / 6)
    assert summary["mean_e2el_ms"] == pytest.approx(1700 / 3)


def test_throughput_counts_completed_requests():
    found = throughput(RECORDS, 2.0)
    assert (found["completed"], found["failed"]) == (3, 1)
    assert (found["total_input_tokens"], found["total_output_tokens"]) == (60, 9)
    assert found["request_throughput"] == 1.5
    assert found["output_throughput"] == 4.5
    assert found["total_token_throughput"] == 34.5


def test_goodput_needs_every_slo_and_attainment_counts_failed_requests():
    found = goodput(RECORDS, {"": {"ttft": 300.0, "tpot": 150.0}}, 2.0)
    assert found["request_goodput"] == 1.0
    assert found["slo_attainment"] == 0.5
    assert found["slo_attainment_by_metric"] == {"ttft": 0.5, "tpot": 0.5}


def test_each_model_is_judged_by_its_own_slos_and_those_without_any_not_at_all():
    one, two = replace(FAST, model="a"), replace(FAST, model="b")
    found = goodput([one, two, FAST], {"a": {"ttft": 200.0}, "b": {"tpot": 50.0}}, 2.0)
    assert (found["request_goodput"], found["slo_attainment"]) == (0.5, 0.5)
    assert found["slo_attainment_by_metric"] == {"ttft": 1.0, "tpot": 0.0}


def test_refused_requests_are_counted_among_the_failed_ones():
    refused = replace(FAILED, error="Overloaded: full", is_refused=True)
    found = throughput([FAST, FAILED, refused], 2.0)
    assert (found["completed"], found["failed"], found["refused"]) == (1, 2, 1)


def test_cold_starts_are_those_that_waited_for_weights():
    found = cold_starts([FAST, replace(FAST, load_s=0.5), replace(SLOW, load_s=1.5)])
    assert found == {"cold_starts": 2, "mean_cold_start_ms": 1000.0}
    assert cold_starts([FAST]) == {"cold_starts": 0, "mean_cold_start_ms": 0.0}


def test_without_slos_there_is_no_goodput():
    assert goodput(RECORDS, {}, 2.0) == {"request_goodput": None, "slo_attainment": None}


def test_the_rate_of_a_trace_is_measured():
    assert measured_rate([0.0, 0.5, 1.0]) == (2.0, float("inf"))
    rate_per_s, burstiness = measured_rate([0.0, 0.0, 2.0])
    assert (rate_per_s, burstiness) == (1.0, 1.0)
    assert measured_rate([0.0])[0] == float("inf")


def test_result_has_vllms_keys():
    settings = settings_of("", slos_ms={"": {"ttft": 300.0}}, request_rate=float("inf"))
    result = build_result(settings, RECORDS, 2.0, datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    assert result["date"] == "20260102-030405"
    assert result["request_rate"] == "inf"
    names = {
        *("date", "backend", "model_id", "tokenizer_id", "num_prompts", "request_rate"),
        *("burstiness", "max_concurrency", "duration", "completed", "failed"),
        *("total_input_tokens", "total_output_tokens", "request_throughput", "request_goodput"),
        *("output_throughput", "total_token_throughput", "input_lens", "output_lens", "ttfts"),
        *("itls", "start_times", "errors", "slo_attainment", "max_output_tokens_per_s"),
    }
    statistics_ = {
        f"{kind}_{metric}_ms"
        for kind in ("mean", "median", "std", "p50", "p99")
        for metric in ("ttft", "tpot", "itl", "e2el")
    }
    assert names | statistics_ <= result.keys()
    assert "generated_texts" not in result


def test_each_model_has_the_keys_of_the_total():
    records = [replace(FAST, model="a"), replace(SLOW, model="b"), replace(FAILED, model="a")]
    settings = settings_of("a", "b", slos_ms={"a": {"ttft": 300.0}})
    result = build_result(settings, records, 2.0, datetime.now(UTC))
    apart = {"date", "backend", "model_id", "tokenizer_id", "burstiness", "max_concurrency"}
    assert result["model_id"] == "a,b"
    for row in result["models"].values():
        assert result.keys() - apart - {"models"} <= row.keys() | {"slo_attainment_by_metric"}
    a, b = result["models"].values()
    assert (a["num_prompts"], a["completed"], a["slo_attainment"]) == (2, 1, 0.5)
    assert (a["request_rate"], a["slos_ms"], a["errors"][1]) == (2.0, {"ttft": 300.0}, FAILED.error)
    assert (b["ttfts"], b["slo_attainment"], b["slos_ms"]) == ([0.4], None, {})


def test_several_models_have_a_row_each_and_one_together():
    refused = replace(FAILED, model="b", error="Overloaded: full", is_refused=True)
    cold = replace(SLOW, model="b", load_s=0.25)
    records = [replace(FAST, model="a"), cold, refused, replace(FAILED, model="b")]
    settings = settings_of("a", "b", "idle", slos_ms={"a": {"ttft": 300.0, "e2el": 90.0}})
    result = build_result(settings, records, 2.0, datetime.now(UTC))
    _, service, latency = "\n".join(tables(result, (50.0, 99.0))).split("\n\n")
    assert [line.split() for line in service.splitlines()[1:]] == [
        ["a", "1.33", "1", "1", "0", "0", "0", "-", "0.0", "ttft:300", "e2el:90"],
        ["b", "1.33", "3", "1", "1", "1", "1", "250.0", "-"],
        ["idle", "1.33", "0", "0", "0", "0", "0", "-", "-"],
        ["total", "4.00", "4", "2", "1", "1", "1", "250.0", "0.0"],
    ]
    header, a, _, idle, total = latency.splitlines()
    assert "TTFT MEAN  TTFT P50  TTFT P99  TPOT MEAN" in header
    assert a.split() == ["a", *["100.0"] * 6, *["500.0"] * 3]
    assert idle.split() == ["idle", *"-" * 9]
    assert total.split()[1:3] == ["250.0", "250.0"]


def test_the_busiest_second_counts_the_tokens_of_each_message():
    # Messages at 0.9, 1.1 and 2.0 s, and at 1.5 s.
    slow = RequestRecord(0.5, 1, 9, ttft_s=0.4, itls_s=(0.2, 0.9), message_lens=(4, 2, 3))
    late = RequestRecord(1.0, 1, 3, ttft_s=0.5, message_lens=(3,))
    failed = RequestRecord(1.0, 1, 9, ttft_s=0.5, message_lens=(9,), error="died")
    assert busiest_second([slow, late, failed]) == 5
    assert busiest_second([]) == 0


def test_the_table_is_aligned():
    result = build_result(settings_of(""), RECORDS, 2.0, datetime.now(UTC))
    lines = list(tables(result, (99.0,)))
    assert {len(line) for line in lines} == {52}
    assert "Serving Benchmark Result" in lines[0]
    assert not any("goodput" in line for line in lines)


def test_the_most_requests_at_once_are_those_whose_times_overlap():
    # FAST ends before SLOW begins; SHORT begins when SLOW ends.
    assert most_at_once([FAST, SLOW, SHORT, FAILED]) == 1
    assert most_at_once([FAST, FAST, SLOW]) == 2
    assert most_at_once([]) == 0
