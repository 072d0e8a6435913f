"""Lengths that benchmarks draw."""

import importlib.util
import statistics
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[1] / "perf/lengths.py"


@pytest.fixture(scope="module")
def lengths():
    spec = importlib.util.spec_from_file_location("perf_lengths", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SYNTHETIC = {
    "alpaca_like": (20, 58),
    "sharegpt_like": (112, 323),
    "heavy_tail": (64, 128),
    "bimodal_90_10": (32, 94.4),
    "equal": (32, 64),
}


@pytest.mark.parametrize("name", SYNTHETIC)
def test_synthetic_lengths_have_their_means(lengths, name):
    drawn = lengths.draw_lengths(name, 100_000, seed=1)
    means = tuple(statistics.fmean(column) for column in zip(*drawn, strict=True))
    assert means == pytest.approx(SYNTHETIC[name], rel=0.06)


def test_lengths_repeat_with_their_seed(lengths):
    for name in ("alpaca_like", "heavy_tail", "bimodal_90_10"):
        first = lengths.draw_lengths(name, 50, seed=3)
        assert first == lengths.draw_lengths(name, 50, seed=3)
        assert first != lengths.draw_lengths(name, 50, seed=4)


def test_scaled_lengths_round_up_and_fit(lengths):
    assert lengths.draw_lengths("equal", 1, seed=1, scale=60) == [(1, 2)]
    assert lengths.draw_lengths("equal", 1, seed=1, max_len=50) == [(25, 25)]
    drawn = lengths.draw_lengths("heavy_tail", 2000, seed=1, max_len=100)
    assert max(prompt + output for prompt, output in drawn) == 100
    assert min(min(pair) for pair in drawn) >= 1


def test_real_lengths_have_the_means_of_the_whole_trace(lengths, data_path, monkeypatch):
    monkeypatch.setattr(lengths, "DATA", data_path)
    for name, expected in (("azure_conv", (1155, 211)), ("azure_code", (2048, 28))):
        drawn = lengths.draw_lengths(name, 20_000, seed=1)
        means = tuple(statistics.fmean(column) for column in zip(*drawn, strict=True))
        assert means == pytest.approx(expected, rel=0.05)
