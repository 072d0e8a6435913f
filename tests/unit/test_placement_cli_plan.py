"""Commands of the planner on a small input, from the file to what they print and write."""

import json
from pathlib import Path

import pytest

from fabric.config.plans import parse_plan
from fabric.config.whole import FabricConfig
from placement.cli.main import main

INPUT = """
devices: [{type: l4, count: 2}]
models:
  - {id: small, shape: smollm2-135m, rate_per_s: 2, max_model_len: 1024, source: "hf:small"}
  - {id: large, shape: smollm2-1.7b, rate_per_s: 1, max_model_len: 1024, source: "hf:large"}
workload:
  arrivals: gamma
  cv: 2
  duration_s: 10
  num_held_out: 2
  lengths: {prompt: 100, output: 10}
search: {budget_s: 1}
"""
SERVED = FabricConfig.model_validate(
    {
        "models": [{"id": "other", "source": "hf:other"}],
        "groups": [{"name": "old", "models": ["other"]}],
        "router": {"port": 1234},
    }
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An input of two small models on two devices."""
    path = tmp_path / "input.yaml"
    path.write_text(INPUT)
    return path


def test_plan_prints_groups_models_and_promise(path: Path, capsys: pytest.CaptureFixture[str]):
    code = main(["plan", str(path)])

    shown = capsys.readouterr()
    assert (code, shown.err) == (0, "")
    assert "Placement: " in shown.out
    assert "say --thorough" in shown.out


def test_written_plan_is_one_that_a_fabric_serves(path: Path):
    out = path.with_name("plan.yaml")

    code = main(["plan", str(path), "--out", str(out), "--quiet"])

    config = parse_plan(SERVED, out.read_text(), str(out))
    assert code == 0
    assert config.router.port == 1234
    assert dict(config.plan().sources) == {"small": "hf:small", "large": "hf:large"}
    assert {model for group in config.plan().groups for model in group.model_ids} == {
        "small",
        "large",
    }


def test_plan_as_json_has_the_placement(path: Path, capsys: pytest.CaptureFixture[str]):
    code = main(["plan", str(path), "--json"])

    report = json.loads(capsys.readouterr().out)
    assert code == 0
    assert {model["model"] for model in report["serving"]["models"]} == {"small", "large"}
    assert sum(group["pipeline"] * group["tensor"] for group in report["serving"]["groups"]) <= 2


def test_model_that_fits_no_device_is_named(path: Path, capsys: pytest.CaptureFixture[str]):
    code = main(["plan", str(path), "--set", "models.1.shape=llama-3-70b"])

    assert code == 0
    assert "Warning: large is in no group" in capsys.readouterr().out


def test_unknown_shape_is_named(path: Path, capsys: pytest.CaptureFixture[str]):
    code = main(["plan", str(path), "--set", "models.0.shape=smollm9"])

    assert code == 2
    assert "smollm9" in capsys.readouterr().err


def test_thorough_plan_is_judged_by_unseen_workloads(
    path: Path, capsys: pytest.CaptureFixture[str]
):
    code = main(["plan", str(path), "--thorough", "--json"])

    assert code == 0
    assert json.loads(capsys.readouterr().out)["held_out"]["num_seeds"] == 2


def test_written_plan_can_be_simulated(path: Path, capsys: pytest.CaptureFixture[str]):
    out = path.with_name("plan.yaml")
    assert main(["plan", str(path), "--out", str(out), "--quiet"]) == 0

    code = main(["simulate", str(out), str(path), "--policy", "mlfq", "--seed", "3"])

    text = capsys.readouterr().out
    assert code == 0
    assert "iterations" in text
    assert "JCT" in text


def test_policies_stand_side_by_side(path: Path, capsys: pytest.CaptureFixture[str]):
    code = main(["compare", str(path), "--policies", "ours,selective-replication"])

    lines = capsys.readouterr().out.splitlines()
    assert code == 0
    assert [line.split()[0] for line in lines[2:4]] == ["ours", "selective-replication"]


def test_capacity_has_a_row_for_each_value(path: Path, capsys: pytest.CaptureFixture[str]):
    sweep = ["--sweep", "rate", "--values", "rate=1,2", "--policies", "ours"]

    code = main(["capacity", str(path), *sweep])

    lines = capsys.readouterr().out.splitlines()
    assert code == 0
    assert lines[0] == "Attainment over rate"
    assert [line.split()[0] for line in lines[2:4]] == ["1", "2"]


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (["capacity", "--sweep", "speed"], "speed: can't be swept; allowed: devices, rate"),
        (["capacity", "--sweep", "rate", "--values", "cv=1"], "--values cv: is not swept"),
        (["compare", "--policies", "best"], "no policy is called 'best'; allowed: ours"),
        (["explain", "--model", "none"], "--model none: there is none; allowed: small, large"),
        (["explain", "--what-if", "speed=2"], "speed: can't be changed; allowed: devices"),
        (["simulate", "none.yaml"], "none.yaml: No such file"),
    ],
)
def test_what_is_unknown_is_named_with_what_is_allowed(
    path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], problem: str
):
    code = main([*argv, str(path)])

    [line] = capsys.readouterr().err.splitlines()
    assert code == 2
    assert problem in line


def test_explanation_names_each_model_and_what_if(path: Path, capsys: pytest.CaptureFixture[str]):
    code = main(["explain", str(path), "--what-if", "rate=2"])

    text = capsys.readouterr().out
    assert code == 0
    assert "small" in text
    assert "rate" in text.split("What if")[1]
