"""The benchmark of one GPU takes all of its ways on the CPU, at tiny sizes."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 280.0
KERNELS = ("ceilings", "ops", "decode_attention", "prefill_attention")


def smoke(folder: Path, *words: str, **environment: str) -> tuple[dict[str, dict], str]:
    """Figures by section, and what was printed."""
    out = folder / "out.json"
    done = subprocess.run(
        [sys.executable, "tests/perf/gpu.py", "--smoke", "--json", str(out), *words],
        cwd=ROOT,
        env=os.environ
        | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder), "OMP_NUM_THREADS": "1"}
        | environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures: dict[str, dict] = json.loads(out.read_text())["figures"]
    return figures, done.stdout


def test_every_section_runs_and_every_bar_has_a_line(tmp_path: Path) -> None:
    figures, printed = smoke(tmp_path)
    assert len(figures) == 15
    assert not [name for name, found in figures.items() if "error" in found]
    assert figures["exactness"]["preempted bfloat16"] == "6 of 6 equal"
    bars = [line.split() for line in printed.splitlines() if line.startswith("BAR ")]
    assert len(bars) == 8
    assert all(line[2] != "nan" and line[4] in ("ok", "short") for line in bars)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_kernels_are_checked_under_the_interpreter(tmp_path: Path) -> None:
    figures, _ = smoke(tmp_path, "--only", *KERNELS, TRITON_INTERPRET="1")
    assert figures["ops"]["failed"] == []
