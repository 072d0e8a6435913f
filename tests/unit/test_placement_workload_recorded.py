"""Recorded requests: formats are read, or refused by the line, and dealt to our models."""

import json
from datetime import datetime

import numpy as np
import pytest

from fabric.cli.bench_metrics import RequestRecord
from fabric.cli.bench_models import ModelShare
from fabric.cli.bench_report import BenchSettings, build_result
from fabric.core.errors import ConfigError
from placement.workload.arrivals import GammaArrivals
from placement.workload.files import load_trace, save_trace
from placement.workload.functions import (
    MinuteCounts,
    deal_counts,
    read_invocations,
    read_minute_counts,
    replay_counts,
)
from placement.workload.generate import ModelWorkload, generate_trace
from placement.workload.lengths import DrawnLengths, Tokens
from placement.workload.measures import gap_cvs, rates_per_s
from placement.workload.recorded import read_journal, read_requests
from placement.workload.refit import Refit
from placement.workload.sources import deal, dealt, dealt_by_shares, with_drawn_lengths

SHORT = DrawnLengths(Tokens(32), Tokens(16))


def workloads(*names):
    return [ModelWorkload(name, GammaArrivals(1.0), SHORT) for name in names]


def equal(first, second):
    return (first.names, first.duration_s) == (second.names, second.duration_s) and all(
        np.array_equal(getattr(first, name), getattr(second, name))
        for name in ("arrivals_s", "models", "prompt_tokens", "output_tokens")
    )


def test_requests_of_a_trace_are_in_order_and_of_one_source(tmp_path):
    path = tmp_path / "mooncake.jsonl"
    path.write_text(
        '{"timestamp": 3000, "input_length": 8, "output_length": 4}\n'
        '{"timestamp": 1000, "input_length": 7, "output_length": 0}\n'
        '{"timestamp": 2000, "input_length": 6, "output_length": 5}\n'
    )
    trace = read_requests(path)
    assert trace.names == ("",)
    assert trace.arrivals_s.tolist() == [0.0, 1.0, 2.0]
    assert trace.prompt_tokens.tolist() == [7, 6, 8]
    assert trace.output_tokens.tolist() == [1, 5, 4]
    # A mean gap follows the last request, so that the rate is that of the gaps.
    assert trace.duration_s == 3.0


def test_an_empty_trace_is_refused(tmp_path):
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(ConfigError, match="holds no requests"):
        read_requests(tmp_path / "none.jsonl")


def test_real_traces_are_read(data_path):
    conv = read_requests(data_path / "traces/azure_llm_2023_conv.csv")
    assert len(conv) == 19366
    assert rates_per_s(conv) == pytest.approx([5.5], rel=0.01)
    assert gap_cvs(conv) == pytest.approx([1.1], rel=0.01)
    code = read_requests(data_path / "traces/azure_llm_2023_code.csv")
    assert gap_cvs(code) == pytest.approx([13.0], rel=0.02)
    assert len(read_requests(data_path / "traces/mooncake_conversation_3000.jsonl")) == 3000


def test_a_saved_trace_is_the_same_when_loaded(tmp_path):
    trace = generate_trace(workloads("a", "b"), 50.0, 1)
    save_trace(trace, tmp_path / "trace.jsonl")
    assert equal(load_trace(tmp_path / "trace.jsonl"), trace)
    assert equal(read_journal(tmp_path / "trace.jsonl"), trace)


HEADER = '{"format": "llm-fabric trace 1", "names": ["a"], "duration_s": 9.0}\n'
GOOD = '{"at_s": 2.0, "model": "a", "prompt_tokens": 1, "output_tokens": 1}\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"t\.jsonl:1: needs format"),
        (GOOD, r"t\.jsonl:1: needs format"),
        (HEADER.replace("trace 1", "trace 9"), r"t\.jsonl:1: .*trace 9"),
        (HEADER + GOOD.replace('"a"', '"b"'), r"t\.jsonl:2: needs a model of a"),
        (HEADER + GOOD + GOOD.replace("2.0", "1.0"), r"t\.jsonl:3: at_s is 1.0"),
        (HEADER + GOOD.replace("2.0", "9.5"), r"t\.jsonl:2: at_s is 9.5"),
        (HEADER + GOOD.replace(': 1, "out', ': -1, "out'), r"t\.jsonl:2: needs at_s"),
    ],
)
def test_a_broken_trace_file_names_the_line(tmp_path, text, message):
    (tmp_path / "t.jsonl").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_trace(tmp_path / "t.jsonl")


def test_a_trace_that_cannot_be_written_is_named(tmp_path):
    trace = generate_trace(workloads("a"), 5.0, 1)
    with pytest.raises(ConfigError, match="cannot write"):
        save_trace(trace, tmp_path / "nowhere" / "t.jsonl")


def bench_result():
    """What ``fabric bench serve --json`` writes of four requests, one of them refused."""
    records = [
        RequestRecord(0.0, 5, output_len=10, model="a"),
        RequestRecord(1.0, 9, output_len=8, model="b"),
        RequestRecord(2.0, 6, output_len=20, model="a"),
        RequestRecord(3.0, 7, error="Overloaded: full", model="a"),
    ]
    shares = (ModelShare("a", 0.5), ModelShare("b", 0.5))
    settings = BenchSettings(shares, 1.0, 1.0, None, (99.0,), {})
    return build_result(settings, records, 4.0, datetime(2026, 1, 1))


def test_a_benchmarks_requests_are_replayed_the_refused_ones_too(tmp_path):
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(bench_result()))
    trace = read_journal(path)
    assert trace.names == ("a", "b")
    assert trace.arrivals_s.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert trace.models.tolist() == [0, 1, 0, 0]
    assert trace.prompt_tokens.tolist() == [5, 9, 6, 7]
    # A refused request would have been as long as others in the median.
    assert trace.output_tokens.tolist() == [10, 8, 20, 15]


@pytest.mark.parametrize("text", ["{}", '{"models": 3}', "[]"])
def test_what_is_no_benchmark_result_is_refused(tmp_path, text):
    (tmp_path / "bench.json").write_text(text)
    with pytest.raises(ConfigError, match="needs models"):
        read_journal(tmp_path / "bench.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"errors": ["x"] * 3, "output_lens": [0] * 3}, "models.a: .*completed"),
        ({"input_lens": [1]}, "models.a: needs start_times"),
    ],
)
def test_a_broken_benchmark_result_names_the_model(tmp_path, changes, message):
    result = bench_result()
    result["models"]["a"] |= changes
    (tmp_path / "bench.json").write_text(json.dumps(result))
    with pytest.raises(ConfigError, match=message):
        read_journal(tmp_path / "bench.json")


def test_a_result_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "bench.json").write_text("no json")
    with pytest.raises(ConfigError, match=r"bench\.json"):
        read_journal(tmp_path / "bench.json")


def minute_file(tmp_path, *rows):
    """A day of functions, each asked so often in its first minutes and then never."""
    path = tmp_path / "day.csv"
    lines = ["HashOwner,HashApp,HashFunction,Trigger," + ",".join(map(str, range(1, 1441)))]
    for place, row in enumerate(rows):
        counts = [*row, *[0] * (1440 - len(row))]
        lines.append(f"o,a,f{place},http," + ",".join(map(str, counts)))
    path.write_text("\n".join(lines) + "\n")
    return path


def test_counts_of_minutes_are_read_without_idle_functions(tmp_path):
    path = minute_file(tmp_path, [9, 1, 2], [8, 0, 0], [0, 5, 0])
    counts = read_minute_counts(path, first_minute=1, num_minutes=2)
    assert counts.names == ("f0", "f2")
    assert counts.counts.tolist() == [[1, 2], [5, 0]]
    assert counts.duration_s == 120.0


@pytest.mark.parametrize(
    ("row", "minutes", "message"),
    [
        (["x"], (0, 2), r"day\.csv:2: needs HashFunction, 1 to 2"),
        ([-1], (0, 2), r"day\.csv:2"),
        ([1], (5, 2), "no function is asked"),
        ([1], (1439, 2), "minutes 1439 to 1441"),
    ],
)
def test_broken_counts_are_refused(tmp_path, row, minutes, message):
    with pytest.raises(ConfigError, match=message):
        read_minute_counts(minute_file(tmp_path, row), *minutes)


def test_functions_are_dealt_in_stripes_blocks_or_by_name():
    functions = ["f0", "f1", "f2", "f3", "f4"]
    assert deal(functions, ["a", "b"], "stripe").tolist() == [0, 1, 0, 1, 0]
    assert deal(functions, ["a", "b"], "blocks").tolist() == [0, 0, 0, 1, 1]
    assert deal(["b", "a"], ["a", "b"], "names").tolist() == [1, 0]
    with pytest.raises(ConfigError, match="'c'"):
        deal(["c"], ["a", "b"], "names")


def test_counts_are_summed_for_each_model():
    counts = MinuteCounts(("f", "g", "h"), np.array([[1, 2], [3, 4], [5, 6]]))
    assert deal_counts(counts, ["a", "b"], "stripe").counts.tolist() == [[6, 8], [3, 4]]


def test_counts_without_windows_are_kept_to_the_minute():
    counts = MinuteCounts(("a", "b"), np.array([[3, 0, 2], [0, 1, 0]]))
    trace = replay_counts(counts, workloads("a", "b"), None, seed=1)
    minutes = (trace.arrivals_s // 60.0).astype(int)
    found = [np.bincount(minutes[trace.models == model], minlength=3) for model in (0, 1)]
    assert np.array_equal(found, counts.counts)
    assert (trace.duration_s, set(trace.prompt_tokens)) == (180.0, {32})


@pytest.mark.parametrize("cv", [1.0, 4.0])
def test_windows_of_counts_keep_them_in_the_mean(cv):
    counts = MinuteCounts(("a",), np.tile([20, 0, 60], 700)[None, :])
    refit = Refit(60.0, "counts", rate_scale=0.5, cv_scale=cv)
    trace = replay_counts(counts, workloads("a"), refit, seed=1)
    by_minute = np.bincount((trace.arrivals_s // 60.0).astype(int), minlength=2100).reshape(-1, 3)
    error = cv * np.sqrt(30.0) / np.sqrt(700)
    assert by_minute.mean(axis=0) == pytest.approx([10.0, 0.0, 30.0], abs=4 * error)


def test_windows_that_are_no_whole_minutes_are_refused():
    counts = MinuteCounts(("a",), np.array([[1, 2]]))
    with pytest.raises(ConfigError, match="whole minutes"):
        replay_counts(counts, workloads("a"), Refit(90.0, "counts"), seed=1)


def invocations_file(tmp_path, *rows):
    path = tmp_path / "invocations.csv"
    path.write_text("app,func,end_timestamp,duration\n" + "".join(f"{row}\n" for row in rows))
    return path


def test_an_invocation_began_its_duration_before_its_end(tmp_path):
    path = invocations_file(tmp_path, "a,f,10.0,1.0", "a,g,9.5,8.5", "b,f,4.0,0.5", "a,f,99.0,1.0")
    trace = read_invocations(path, start_s=2.0, duration_s=20.0)
    # a/g began at 1 s, before the part that counts, and a/f again at 98 s, after it.
    assert trace.names == ("a/f", "b/f")
    assert trace.arrivals_s.tolist() == [1.5, 7.0]
    assert trace.models.tolist() == [1, 0]
    assert trace.duration_s == 20.0


@pytest.mark.parametrize(
    ("row", "message"),
    [("a,f,soon,1", r"invocations\.csv:2: needs app"), ("a,f,1.0,0.5", "no function is asked")],
)
def test_broken_invocations_are_refused(tmp_path, row, message):
    with pytest.raises(ConfigError, match=message):
        read_invocations(invocations_file(tmp_path, row), start_s=2.0)


def test_samples_of_the_functions_traces_are_read(data_path):
    counts = read_minute_counts(data_path / "traces/azure_functions_2019_sample_invocations.csv")
    assert counts.counts.sum(axis=1).tolist() == [1150, 1125, 1125, 1125]
    trace = read_invocations(data_path / "traces/azure_functions_2021_first200.csv")
    assert (len(trace), len(trace.names)) == (199, 31)
    assert trace.arrivals_s[0] == pytest.approx(0.0014909)


def test_sources_become_models_with_lengths(tmp_path):
    path = invocations_file(tmp_path, "a,f,1.0,0.5", "a,g,2.0,0.5", "b,f,3.0,0.5")
    trace = dealt(read_invocations(path), ["x", "y"], "stripe")
    assert (trace.names, trace.models.tolist()) == (("x", "y"), [0, 1, 0])
    full = with_drawn_lengths(trace, [SHORT, DrawnLengths(Tokens(4), Tokens(5))], seed=1)
    assert full.prompt_tokens.tolist() == [32, 4, 32]
    assert full.output_tokens.tolist() == [16, 5, 16]
    with pytest.raises(ConfigError, match="2 models and 1 lengths"):
        with_drawn_lengths(trace, [SHORT], seed=1)


def test_requests_are_shared_out_by_weight():
    trace = generate_trace([ModelWorkload("", GammaArrivals(10.0), SHORT)], 1000.0, 1)
    found = dealt_by_shares(trace, ["a", "b"], np.array([3.0, 1.0]), seed=1)
    assert rates_per_s(found) == pytest.approx([7.5, 2.5], rel=0.1)
    assert equal(found, dealt_by_shares(trace, ["a", "b"], np.array([3.0, 1.0]), seed=1))
    with pytest.raises(ConfigError, match="1 models and 2 weights"):
        dealt_by_shares(trace, ["a"], np.array([1.0, 1.0]), seed=1)
