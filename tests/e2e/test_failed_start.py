"""A fabric that can't start says why in one line, and leaves nothing behind."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.e2e.live_fabric import processes_of_session

pytestmark = [pytest.mark.ray, pytest.mark.timeout(120)]

COMMAND = "import sys; from fabric.cli import main; sys.exit(main())"
ENDED_S = 10.0


def test_truncated_weights_are_named_and_nothing_stays(stories_path: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(stories_path, model, copy_function=shutil.copyfile)
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500_000])
    config = tmp_path / "fabric.yaml"
    tree = {
        "models": [{"id": "m", "source": str(model)}],
        "groups": [{"name": "g0", "models": ["m"]}],
        "router": {"port": 0},
    }
    config.write_text(yaml.safe_dump(tree))
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "serve", str(config)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    out, err = process.communicate()
    assert process.returncode == 1
    assert out == ""
    assert "Traceback" not in err
    reason = err.splitlines()[-1]
    assert reason.startswith("fabric: group g0 could not be started: ")
    assert "model.safetensors: not a whole safetensors file" in reason
    deadline = time.monotonic() + ENDED_S
    while processes_of_session(process.pid):
        assert time.monotonic() < deadline, "processes stayed"
        time.sleep(0.1)
