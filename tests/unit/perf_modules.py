"""Benchmark scripts are no package: they import each other from the folder that they are in."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

PERF = Path(__file__).resolve().parents[1] / "perf"


@contextmanager
def perf_module(name: str) -> Iterator[ModuleType]:
    """Import a benchmark's module, and forget it and what it imported from its folder."""
    before = set(sys.modules)
    sys.path.insert(0, str(PERF))
    try:
        yield importlib.import_module(name)
    finally:
        sys.path.remove(str(PERF))
        for found in set(sys.modules) - before:
            if str(PERF) in (getattr(sys.modules[found], "__file__", None) or ""):
                del sys.modules[found]
