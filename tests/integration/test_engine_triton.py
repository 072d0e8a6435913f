"""An engine over Triton's kernels, in its interpreter: a process of its own, which is told so."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import sys
from pathlib import Path

from fabric.engine.build import build_engine
from fabric.engine.engine_timer import EngineTimer, Workload
from fabric.engine.settings import EngineSettings, ModelSettings, WorkerSettings
from fabric.engine.worker_model import WorkerModel
from fabric.scheduler.settings import SchedulerConfig
from tests.unit.test_engine_decode_graphs import FakeRecorder


def tokens(backend, is_async=False):
    model = ModelSettings(model="tiny", source="random:tiny", dtype="float32")
    worker = WorkerSettings(
        models=(model,), cache_dir=Path(sys.argv[1]), kv_cache_bytes=2**20, backend=backend
    )
    scheduler = SchedulerConfig(max_num_seqs=3, async_scheduling=is_async)
    built = build_engine(EngineSettings(worker=worker, scheduler=scheduler))
    timer, workload = EngineTimer(built), Workload((3, 9, 17), 4)
    run = timer.run(workload, [list(range(5, 5 + n)) for n in workload.prompt_lens])
    built.engine.close()
    return run.token_ids


expected = tokens("reference")
assert tokens("triton") == expected
recorder = FakeRecorder()
WorkerModel._recorder = lambda *_: recorder
assert tokens("triton") == expected
assert tokens("triton", is_async=True) == expected
assert recorder.num_replays >= 4, recorder
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_tokens_are_the_references_recorded_and_filled_up_or_not(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
