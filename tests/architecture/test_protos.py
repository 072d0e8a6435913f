"""Stubs are built, not committed, so a checkout's may be older than its protos."""

import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STUBS = "fabric/rpc/v1"


def stubs(root: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted((root / STUBS).glob("*_pb2*.py*"))}


def test_generated_stubs_are_current(tmp_path: Path):
    runpy.run_path(str(ROOT / "protos/generate.py"))["generate"](tmp_path)
    assert stubs(ROOT) == stubs(tmp_path), "run `make proto`"
