"""What an import pulls in: a client must not pay for torch, nor the scheduler for anything."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PROBE = """
import importlib, json, sys
before = set(sys.modules)
importlib.import_module(sys.argv[1])
print(json.dumps(sorted({name.partition(".")[0] for name in set(sys.modules) - before})))
"""


def imported_packages(module: str) -> set[str]:
    """Top-level packages that importing ``module`` in a fresh process loads."""
    command = [sys.executable, "-c", PROBE, module]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return set(json.loads(done.stdout))


def test_client_loads_only_grpc_and_protobuf():
    heavy = {"torch", "ray", "msgpack", "pydantic", "numpy"}
    assert imported_packages("fabric.client") & heavy == set()


def test_router_loads_no_torch():
    assert "torch" not in imported_packages("fabric.router.server")


@pytest.mark.parametrize("module", ["fabric.scheduler.scheduler", "fabric.kv.manager"])
def test_deciding_half_loads_only_the_standard_library(module: str):
    assert imported_packages(module) - sys.stdlib_module_names == {"fabric"}
