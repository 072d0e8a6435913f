"""The benchmark of one engine in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fabric.cli import main

SMALL = ("--tokens", "3", "--rounds", "1", "--threads", "1", "--kv-cache", "0.05")


def test_a_model_is_measured_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    out = tmp_path / "out.json"
    assert main(["bench", "engine", "random:tiny", *SMALL, "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    # Those that fit into the model's 512 tokens.
    assert list(result["figures"]) == ["decode at 128", "32 prompts of 128-512"]
    assert result["figures"]["decode at 128"]["tokens/s"] > 0
    assert result["num_threads"] == 1
    assert result["cuda_graphs"] is False
    assert "decode at 128" in capsys.readouterr().out


def test_a_gpu_that_is_not_there_ends_it_with_what_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main(["bench", "engine", "random:tiny", "--device", "cuda:99", *SMALL]) == 2
    assert "fabric: device is 'cuda:99'; t" in capsys.readouterr().err


def test_it_needs_neither_ray_nor_grpc_nor_what_reads_other_formats(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "for name in ('ray', 'grpc', 'pydantic', 'rich', 'gguf'):\n"
        "    sys.modules[name] = None\n"
        "from fabric.cli import main\n"
        f"sys.exit(main(['bench', 'engine', 'random:tiny', *{SMALL!r}]))\n"
    )
    environment = {"XDG_CACHE_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).resolve().parents[2],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", [["--help"], ["bench", "--help"], ["bench", "serve", "--help"]])
def test_all_commands_are_known_to_help(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(words)
    printed = capsys.readouterr().out
    assert ("unload" in printed) == (words == ["--help"])
    assert ("--burstiness" in printed) == ("serve" in words)
