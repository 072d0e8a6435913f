"""The planner's input: what it says, and how it says what is wrong with it."""

from pathlib import Path
from typing import Any

import pytest

from fabric.core.errors import ConfigError
from fabric.core.plan import ParallelConfig
from fabric.core.request import Objectives
from placement.config import PlanInput, load_input, parse_input
from placement.config.changes import changed, sweepable, usual_values, with_trace
from placement.config.placed import load_placement
from placement.devices import GroupConfig
from placement.groups import Group

EXAMPLE = Path(__file__).resolve().parents[2] / "deploy" / "plan.yaml"


def tree(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "devices": [{"type": "a100-80gb", "count": 8}],
        "models": [{"id": "chat", "shape": "llama-3-8b", "rate_per_s": 2.0}],
    }
    return {**base, **changes}


def parsed(**changes: Any) -> PlanInput:
    return parse_input(tree(**changes), "plan.yaml")


def with_model(**keys: Any) -> dict[str, Any]:
    return {"models": [{"id": "chat", "shape": "llama-3-8b", "rate_per_s": 2.0, **keys}]}


def test_example_has_six_models_on_eight_devices():
    inputs = load_input(EXAMPLE)

    assert (len(inputs.models), inputs.num_devices) == (6, 8)
    assert inputs.models[0].objectives.objectives() == Objectives(1.0, 0.05)


def test_what_is_not_said_has_a_default():
    inputs = parsed()

    assert (inputs.target, inputs.slo_scale) == (0.99, 5.0)
    assert inputs.workload.lengths.prompt is not None
    assert inputs.serving.scheduler_config().max_num_seqs == 256


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"groupings": []}, "groupings: unknown; allowed: devices, device_types, models"),
        (with_model(rate=1), "models.0.rate: unknown; allowed: id, shape"),
        (with_model(rate_per_s=0), "models.0.rate_per_s: Input should be greater than 0 (is 0)"),
        (with_model(dtype="int8"), "models.0.dtype: Input should be 'auto', 'float32' or"),
        (with_model(config="none.json"), "models.0.config: there is no file none.json"),
        (with_model(share=1), "models.0: rate_per_s and share: only one may be given"),
        (with_model(slo_scale=2, objectives={"ttft_s": 1}), "models.0: objectives and slo_scale"),
        ({"models": [{"id": "a"}]}, "models.0: shape (a name of the catalog), config or profiles"),
        ({"models": [{"id": "a", "shape": "x"}]}, "models.0.rate_per_s: is needed, or workload"),
        ({"models": [*tree()["models"], *tree()["models"]]}, "models: 'chat' is named twice"),
        ({"devices": []}, "devices: List should have at least 1 item"),
        ({"devices": [{"type": "a100"}]}, "devices.0.count: Field required"),
        ({"target": 99}, "target: Input should be less than or equal to 1 (is 99)"),
        ({"workload": {"cv": 2}}, "workload: cv: is for arrivals gamma, not poisson"),
        ({"workload": {"arrivals": "mmpp"}}, "workload: states: is needed for arrivals mmpp"),
        ({"workload": {"lengths": {"prompt": 5}}}, "workload.lengths: prompt and output are"),
        ({"workload": {"lengths": {"prompt": "long", "output": 5}}}, "lengths.prompt: Input"),
        ({"workload": {"popularity": {"total_rate_per_s": 1}}}, "models.0.rate_per_s: workload"),
    ],
)
def test_error_names_the_key_and_what_is_allowed(changes: dict[str, Any], problem: str):
    with pytest.raises(ConfigError) as raised:
        parsed(**changes)

    assert raised.value.message.startswith("plan.yaml: ")
    assert problem in raised.value.message
    assert "\n" not in raised.value.message


def test_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"none\.yaml: No such file"):
        load_input(tmp_path / "none.yaml")


def test_file_that_is_not_yaml_is_named_in_one_line(tmp_path: Path):
    path = tmp_path / "bad.yaml"
    path.write_text("models: [\n")

    with pytest.raises(ConfigError, match="not YAML") as raised:
        load_input(path)

    assert "\n" not in raised.value.message


def test_paths_are_relative_to_the_input_file(tmp_path: Path):
    (tmp_path / "chat.json").write_text("{}")
    models = [{"id": "chat", "shape": "x", "rate_per_s": 1, "profiles": ["chat.json"]}]

    inputs = parse_input(tree(models=models), "plan.yaml", tmp_path)

    assert inputs.models[0].profiles[0].path == tmp_path / "chat.json"
    assert inputs.models[0].profiles[0].format == "fabric"


def test_override_replaces_a_value_of_the_file():
    inputs = load_input(EXAMPLE, ("devices.0.count=4", "workload.cv=1.5"))

    assert (inputs.num_devices, inputs.workload.gap_cv) == (4, 1.5)


@pytest.mark.parametrize("override", ["devices.9.count=4", "devices", "models.0.id.x=3"])
def test_override_of_no_place_is_refused(override: str):
    with pytest.raises(ConfigError, match="--set"):
        load_input(EXAMPLE, (override,))


def test_power_law_shares_the_total_by_rank():
    models = [{"id": name, "shape": "x"} for name in ("a", "b", "c", "d")]
    popularity = {"total_rate_per_s": 10.0, "power_law": 1.0}

    rates = parsed(models=models, workload={"popularity": popularity}).rates_per_s()

    assert sum(rates) == pytest.approx(10.0)
    assert rates[0] / rates[3] == pytest.approx(4.0)


def test_shares_of_models_split_the_total():
    models = [{"id": "a", "shape": "x", "share": 3}, {"id": "b", "shape": "x"}]

    inputs = parsed(models=models, workload={"popularity": {"total_rate_per_s": 8.0}})

    assert inputs.rates_per_s() == (6.0, 2.0)


def test_trace_needs_no_rates(tmp_path: Path):
    (tmp_path / "trace.csv").write_text("")
    workload = {"arrivals": "trace", "trace": {"format": "azure_llm", "path": "trace.csv"}}

    inputs = parse_input(
        tree(models=[{"id": "a", "shape": "x"}], workload=workload), "plan.yaml", tmp_path
    )

    assert inputs.shares() == (1.0,)


def test_device_type_given_by_its_numbers_is_one_for_the_planner():
    numbers = {"like": "l4", "memory": "48GiB", "inside": {"bytes_per_s": 1e10}}

    device = parsed(device_types={"ours": numbers}).device_types["ours"].device_type("ours")

    assert (device.name, device.memory_bytes) == ("ours", 48 * 2**30)
    assert device.inside.bytes_per_s == 1e10


@pytest.mark.parametrize(
    ("numbers", "problem"),
    [
        ({"memory": "24GiB"}, "device_types.ours: inside is None"),
        ({"like": "l5"}, "device_types.ours: no device is called 'l5'; known are"),
    ],
)
def test_device_type_without_all_its_numbers_is_refused(numbers: dict[str, Any], problem: str):
    with pytest.raises(ConfigError, match=problem):
        parsed(device_types={"ours": numbers})


def test_change_of_rate_multiplies_and_leaves_the_input_alone():
    inputs = parsed(workload={"rate_scale": 2.0})

    assert changed(inputs, "rate", 1.5).workload.rate_scale == 3.0
    assert inputs.workload.rate_scale == 2.0


def test_change_of_slo_scales_given_objectives_and_default():
    inputs = changed(parsed(**with_model(objectives={"ttft_s": 2.0})), "slo", 0.5)

    assert inputs.models[0].objectives.ttft_s == 1.0
    assert inputs.models[0].objectives.tpot_s is None
    assert inputs.slo_scale == 2.5


def test_change_of_cv_makes_poisson_arrivals_gamma():
    assert changed(parsed(), "cv", 3.0).workload.gap_cv == 3.0


def test_change_of_devices_is_of_the_type_named():
    inputs = parsed(devices=[{"type": "a", "count": 1}, {"type": "b", "count": 2}])

    assert [device.count for device in changed(inputs, "b", 5).devices] == [1, 5]
    with pytest.raises(ConfigError, match="name one of a, b"):
        changed(inputs, "devices", 4)


@pytest.mark.parametrize(("quantity", "value"), [("speed", 2.0), ("rate", 0.0), ("devices", 1.5)])
def test_change_that_makes_no_sense_is_refused(quantity: str, value: float):
    with pytest.raises(ConfigError, match=quantity):
        changed(parsed(), quantity, value)


def test_usual_values_surround_the_inputs_own():
    assert usual_values(parsed(), "devices") == (2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 16.0)
    assert 1.0 in usual_values(parsed(), "rate")


def test_trace_takes_the_place_of_arrivals(tmp_path: Path):
    path = tmp_path / "trace.csv"
    path.write_text("")

    workload = with_trace(parsed(workload={"arrivals": "gamma", "cv": 2}), "azure_llm", path)

    assert (workload.workload.arrivals, workload.workload.cv) == ("trace", None)
    assert workload.workload.trace is not None
    assert workload.workload.trace.train_share == 1.0


def test_input_is_swept_over_what_it_has(tmp_path: Path):
    path = tmp_path / "trace.csv"
    path.write_text("")
    types = [{"type": "a", "count": 1}, {"type": "b", "count": 2}]

    assert sweepable(parsed()) == ("devices", "rate", "cv", "slo")
    assert sweepable(with_trace(parsed(devices=types), "azure_llm", path)) == ("rate", "slo")


def test_share_is_refused_where_a_power_law_gives_it():
    models = [{"id": "a", "shape": "x", "share": 2}]
    popularity = {"total_rate_per_s": 1, "power_law": 0.5}

    with pytest.raises(ConfigError, match=r"models\.0\.share: workload.popularity.power_law"):
        parsed(models=models, workload={"popularity": popularity})


def test_trace_of_unknown_kind_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="csv: is no trace; allowed: azure_llm"):
        with_trace(parsed(), "csv", tmp_path)


PLAN = """
models: [{id: chat, source: x}]
groups:
  - {name: g0, models: [chat, {id: code, weight: 2}], parallel: {tensor: 2}, memory: 40GiB}
  - {name: g1, models: [chat], memory: 20GiB, num_cpus: 2}
"""
BUDGETS = {"l4": 20 * 2**30, "a100-40": 40 * 2**30}


def test_placement_is_read_from_a_plans_groups(tmp_path: Path):
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN)

    placement = load_placement(path, ("code", "chat"), BUDGETS)

    assert placement.groups == (Group(0, (0, 1)), Group(1, (1,)))
    assert placement.configs == (
        GroupConfig("a100-40", ParallelConfig(1, 2)),
        GroupConfig("l4", ParallelConfig(1, 1)),
    )


@pytest.mark.parametrize(
    ("models", "budgets", "problem"),
    [
        (("chat",), BUDGETS, "groups.0.models.1: code is no model of the input; allowed: chat"),
        (("chat", "code"), {"a": 1, "b": 2}, r"groups.0.memory: is .*; must say on which type"),
    ],
)
def test_plan_that_does_not_fit_the_input_is_refused(
    tmp_path: Path, models: tuple[str, ...], budgets: dict[str, int], problem: str
):
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN)

    with pytest.raises(ConfigError, match=problem):
        load_placement(path, models, budgets)
