"""What the planner's commands load: little for help, and never what only a server needs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SERVERS_OWN = {"torch", "ray", "grpc", "kernels", "huggingface_hub", "transformers"}
PROBE = """
import contextlib, io, json, sys
from placement.cli.main import main
shown = io.StringIO()
with contextlib.redirect_stdout(shown):
    try:
        code = main(sys.argv[1:])
    except SystemExit as leaving:
        code = leaving.code
packages = sorted({name.partition(".")[0] for name in sys.modules})
print(json.dumps({"code": code, "text": shown.getvalue(), "packages": packages}))
"""

INPUT = """
devices: [{type: l4, count: 1}]
models: [{id: tiny, shape: smollm2-135m, max_model_len: 512, rate_per_s: 1}]
workload: {duration_s: 5, num_held_out: 2, lengths: {prompt: 50, output: 5}}
"""


def run(*argv: str) -> tuple[int, str, set[str]]:
    """The exit code of a command in a fresh process, its output, and the packages it loaded."""
    command = [sys.executable, "-c", PROBE, *argv]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=60)
    answer = json.loads(done.stdout)
    return answer["code"], answer["text"], set(answer["packages"])


@pytest.mark.parametrize("argv", [("--help",), ("plan", "--help")])
def test_help_loads_only_the_standard_library(argv: tuple[str, ...]):
    code, text, packages = run(*argv)

    assert code == 0
    assert "usage: fabric-plan" in text
    assert packages & {"numpy", "pydantic", "yaml", "rich", "scipy", "matplotlib"} == set()


def test_plan_needs_nothing_of_a_servers_and_draws_only_when_asked(tmp_path: Path):
    path = tmp_path / "input.yaml"
    path.write_text(INPUT)

    code, text, packages = run("plan", str(path))

    assert code == 0
    assert "tiny" in text
    assert packages & SERVERS_OWN == set()
    assert packages & {"matplotlib", "scipy"} == set()
