"""Kernels compile for GPUs that are not here, and keep what exactness rests on."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
SHARED_BYTES_OF_AN_SM = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}


def compiled(capability: int, pattern: str, tmp_path: Path) -> dict[str, Any]:
    """What came out for the kernels whose name the pattern finds."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.triton.compiling", str(capability), pattern],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_small_kernels_compile(tmp_path: Path) -> None:
    names = "rms_norm|silu|store_kv|rope|move_blocks|fold|part_statistics"
    found = compiled(90, f"({names}).*bf16", tmp_path)
    assert len(found) == 10
    # A multiply and an add become one only where tl.fma says so.
    contracted = [name for name, made in found.items() if made["contracted"]]
    assert contracted == ["fold_statistics bf16", "fold_splits bf16"]  # log2 has some of its own


def test_linear_layers_of_any_number_of_tokens_have_one_instruction(tmp_path: Path) -> None:
    """On Hopper: but for its columns, which are tokens."""
    found = compiled(90, "linear (int4 |int8 )?(16x64|64x64|128x128) bf16", tmp_path)
    assert len(found) == 9
    for name, made in found.items():
        tokens = name.split()[-2].partition("x")[0]
        assert made["matrix"] == [f"wgmma.mma_async.sync.aligned.m64n{tokens}k16.f32.bf16.bf16"]
        assert made["shared_bytes"] <= SHARED_BYTES_OF_AN_SM[90]


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_attention_and_a_linear_layer_compile(capability: int, tmp_path: Path) -> None:
    found = compiled(
        capability, "(paged_attention 128|linear 16x64|linear int4 16x64) bf16", tmp_path
    )
    assert len(found) == 3
    for made in found.values():
        assert made["cubin_bytes"] > 0
        assert made["matrix"]
        assert made["shared_bytes"] <= SHARED_BYTES_OF_AN_SM[capability]
