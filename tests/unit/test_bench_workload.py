"""Arrivals and traces of a benchmark."""

import statistics
from itertools import pairwise

import pytest

from fabric.cli.bench_workload import (
    Arrival,
    fit_trace,
    gamma_arrivals,
    read_trace,
)
from fabric.core.errors import ConfigError


def gaps(arrivals_s):
    return [b - a for a, b in pairwise(arrivals_s)]


@pytest.mark.parametrize("cv", [0.5, 1.0, 2.0])
def test_gamma_arrivals_have_the_rate_and_variation_asked_for(cv):
    found = gaps(gamma_arrivals(40_000, rate_per_s=8.0, cv=cv, seed=1))
    mean_s = statistics.fmean(found)
    assert mean_s == pytest.approx(1 / 8, rel=0.05)
    assert statistics.pstdev(found) / mean_s == pytest.approx(cv, rel=0.05)


def test_without_variation_arrivals_are_a_clock():
    assert gamma_arrivals(4, rate_per_s=2.0, cv=0.0, seed=1) == [0.0, 0.5, 1.0, 1.5]


def test_an_infinite_rate_sends_everything_at_once():
    assert gamma_arrivals(3, rate_per_s=float("inf"), cv=1.0, seed=1) == [0.0, 0.0, 0.0]


def test_arrivals_repeat_with_their_seed():
    assert gamma_arrivals(9, 1.0, 1.0, seed=3) == gamma_arrivals(9, 1.0, 1.0, seed=3)
    assert gamma_arrivals(9, 1.0, 1.0, seed=3) != gamma_arrivals(9, 1.0, 1.0, seed=4)


def test_azure_traces_are_read(tmp_path):
    path = tmp_path / "azure.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n"
        "2023-11-16 18:15:48.1805900,396,109\n"
    )
    assert list(read_trace(path)) == [Arrival(0.0, 374, 44), Arrival(1.5, 396, 109)]


def test_mooncake_traces_are_read(tmp_path):
    path = tmp_path / "mooncake.jsonl"
    path.write_text(
        '{"timestamp": 500, "input_length": 7, "output_length": 5, "hash_ids": [0]}\n'
        '{"timestamp": 3000, "input_length": 8, "output_length": 4, "hash_ids": [0]}\n'
    )
    assert list(read_trace(path)) == [Arrival(0.0, 7, 5), Arrival(2.5, 8, 4)]


@pytest.mark.parametrize(
    ("name", "text", "place"),
    [
        ("a.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,1\n", "a.csv:2"),
        ("b.csv", "when,what\n1,2\n", "b.csv:2"),
        ("c.jsonl", '{"timestamp": 1}\n', "c.jsonl:1"),
        ("d.jsonl", "not json\n", "d.jsonl:1"),
    ],
)
def test_a_broken_trace_names_the_line(tmp_path, name, text, place):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=place):
        list(read_trace(tmp_path / name))


def test_a_missing_trace_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"gone\.csv"):
        list(read_trace(tmp_path / "gone.csv"))


def test_a_trace_is_cut_scaled_and_capped():
    trace = [Arrival(0.0, 10, 0), Arrival(4.0, 900, 90), Arrival(9.0, 1, 1)]
    assert fit_trace(trace, 2, scale=0.5, max_input=100, max_output=50) == [
        Arrival(0.0, 10, 1),
        Arrival(2.0, 100, 50),
    ]


def test_real_traces_are_read(data_path):
    for path in sorted((data_path / "traces").glob("azure_llm_*.csv")):
        rows = fit_trace(read_trace(path), 1000, 1.0, 2**31, 2**31)
        assert [row.at_s for row in rows] == sorted(row.at_s for row in rows)
        assert len(rows) == 1000
    mooncake = list(read_trace(data_path / "traces/mooncake_conversation_3000.jsonl"))
    assert len(mooncake) == 3000
