"""Traces are read, or refused by the line."""

from itertools import islice

import pytest

from fabric.core.errors import ConfigError
from fabric.core.traces import Arrival, read_trace


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
        ("e.jsonl", '{"timestamp": NaN, "input_length": 1, "output_length": 1}\n', "e.jsonl:1"),
        ("f.jsonl", '{"timestamp": 1, "input_length": -1, "output_length": 1}\n', "f.jsonl:1"),
        ("g.jsonl", "7\n", "g.jsonl:1"),
    ],
)
def test_a_broken_trace_names_the_line(tmp_path, name, text, place):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=place):
        list(read_trace(tmp_path / name))


def test_a_missing_trace_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"gone\.csv"):
        list(read_trace(tmp_path / "gone.csv"))


def test_real_traces_are_read(data_path):
    for path in sorted((data_path / "traces").glob("azure_llm_*.csv")):
        times = [row.at_s for row in islice(read_trace(path), 1000)]
        assert len(times) == 1000
        assert times == sorted(times)
    mooncake = list(read_trace(data_path / "traces/mooncake_conversation_3000.jsonl"))
    assert len(mooncake) == 3000
