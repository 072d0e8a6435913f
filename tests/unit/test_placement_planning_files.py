"""What an input's files and names stand for, the plan that comes out, and numbers about seeds."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fabric.config.plans import parse_plan
from fabric.config.whole import FabricConfig
from fabric.core.errors import ConfigError
from fabric.core.plan import ParallelConfig
from fabric.core.profile import Profile, ProfileSubject
from fabric.core.request import Objectives
from placement.config import PlanInput, parse_input
from placement.devices import GroupConfig
from placement.groups import Group, Placement
from placement.planning.draws import training_trace
from placement.planning.plan_yaml import plan_yaml, unserved_types
from placement.planning.situation import Situation, situation_of
from placement.planning.statistics import interval, percentiles

MODEL: dict[str, object] = {
    "id": "a",
    "shape": "smollm2-135m",
    "source": "hf:org/a",
    "rate_per_s": 1.0,
    "max_model_len": 1024,
}
SUBJECT = ProfileSubject(
    model="a",
    source="hf:org/a",
    dtype="bfloat16",
    device="cpu",
    processor="any",
    num_threads=1,
    pipeline=1,
    tensor=1,
    block_size=16,
    max_num_seqs=8,
    max_num_batched_tokens=512,
    max_model_len=1024,
    version="0",
)
PROFILE = Profile(
    ((1, 0.030), (64, 0.2), (512, 1.7)),
    ((1, 32, 0.030), (1, 512, 0.035), (8, 32, 0.06), (8, 512, 0.1)),
    subject=SUBJECT,
)
SERVED = FabricConfig.model_validate(
    {
        "models": [{"id": "other", "source": "hf:other"}],
        "groups": [{"name": "old", "models": ["other"]}],
        "router": {"port": 1234},
    }
)


def inputs_of(*models: dict[str, object], folder: Path = Path(), **sections: Any) -> PlanInput:
    tree = {
        "devices": [{"type": "core", "count": 2}],
        "device_types": {"core": {"like": "cpu"}},
        "models": list(models) or [MODEL],
        "workload": {"duration_s": 60, "lengths": {"prompt": 64, "output": 8}},
    }
    return parse_input(tree | sections, "plan.yaml", folder)


def looked_up(inputs: PlanInput) -> Situation:
    return situation_of(inputs, training_trace(inputs))


def profiled(folder: Path, profile: Profile = PROFILE, **model: object) -> Situation:
    """A situation whose model was measured."""
    (folder / "a.json").write_text(profile.to_json())
    return looked_up(inputs_of(MODEL | {"profiles": ["a.json"]} | model, folder=folder))


def test_measured_times_are_believed_first(tmp_path: Path):
    situation = profiled(tmp_path)

    assert situation.source(0) == "measured"
    assert situation.unloaded[0].ttft_s == pytest.approx(0.2)


def test_profile_of_one_model_corrects_what_is_reckoned_of_others(tmp_path: Path):
    (tmp_path / "a.json").write_text(PROFILE.to_json())
    other = MODEL | {"id": "b", "shape": "smollm2-360m"}

    alone = looked_up(inputs_of(other))
    beside = looked_up(inputs_of(MODEL | {"profiles": ["a.json"]}, other, folder=tmp_path))

    assert beside.source(1) == "roofline"
    assert beside.unloaded[1].tpot_s != pytest.approx(alone.unloaded[0].tpot_s, rel=0.05)


def test_profile_in_another_dtype_than_the_served_one_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"a\.json: was measured in bfloat16; .* float32"):
        profiled(tmp_path, dtype="float32")


def test_profile_of_other_weights_than_the_served_ones_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"a\.json: was measured with quantization none; .* int8"):
        profiled(tmp_path, quantization="int8")


def test_profile_of_integer_weights_says_what_they_take(tmp_path: Path):
    profile = replace(PROFILE, subject=replace(SUBJECT, quantization="int8"))
    config = GroupConfig("core", ParallelConfig())
    costs = [
        profiled(tmp_path).costs.cost("a", config),
        profiled(tmp_path, profile, quantization="int8").costs.cost("a", config),
    ]
    [wide, narrow] = [cost.weight_bytes[0] for cost in costs if cost is not None]
    assert narrow < 0.7 * wide


def test_profile_that_does_not_say_what_was_measured_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"a\.json: subject is missing"):
        profiled(tmp_path, replace(PROFILE, subject=None))


def test_file_that_is_no_profile_is_named(tmp_path: Path):
    (tmp_path / "a.json").write_text('{"version": 9}')

    with pytest.raises(ConfigError, match=r"a\.json: version is 9"):
        looked_up(inputs_of(MODEL | {"profiles": ["a.json"]}, folder=tmp_path))


def test_profile_needs_a_device_where_there_are_several_types(tmp_path: Path):
    (tmp_path / "a.json").write_text(PROFILE.to_json())
    inputs = inputs_of(
        MODEL | {"profiles": ["a.json"]},
        devices=[{"type": "core", "count": 1}, {"type": "l4", "count": 1}],
        folder=tmp_path,
    )

    with pytest.raises(ConfigError, match=r"a: profiles: .*a\.json: device is None; one of core"):
        looked_up(inputs)


@pytest.mark.parametrize(
    ("model", "sections", "problem"),
    [
        ({"shape": "llama-9"}, {}, "llama-9"),
        ({}, {"devices": [{"type": "b9", "count": 1}]}, "no device is called 'b9'; known are"),
        ({"max_model_len": 10**9}, {}, r"models: a: no group .* 1000000000 tokens \(max_model_len"),
        ({}, {"search": {"group_sizes": [64]}}, r"search.group_sizes is \[64\]"),
    ],
)
def test_what_is_not_known_or_fits_nowhere_is_named(
    model: dict[str, object], sections: dict[str, object], problem: str
):
    with pytest.raises(ConfigError, match=problem):
        looked_up(inputs_of(MODEL | model, **sections))


def test_objectives_that_are_left_out_are_multiples_of_what_the_model_takes_alone():
    situation = looked_up(inputs_of(slo_scale=4.0))

    [objectives], [alone] = situation.objectives, situation.unloaded
    assert objectives.ttft_s == pytest.approx(4 * alone.ttft_s)
    assert objectives.tpot_s == pytest.approx(4 * alone.tpot_s)
    assert objectives.e2e_s is None


def test_objective_for_steps_alone_gets_one_for_the_first_token():
    situation = looked_up(inputs_of(MODEL | {"objectives": {"tpot_s": 0.5}}, slo_scale=4.0))

    [objectives], [alone] = situation.objectives, situation.unloaded
    assert objectives == Objectives(ttft_s=pytest.approx(4 * alone.ttft_s), tpot_s=0.5)


def test_model_takes_the_bits_that_it_is_served_in():
    stored, served = (
        looked_up(inputs_of(MODEL | {"dtype": dtype})) for dtype in ("auto", "float32")
    )

    [narrow], [wide] = (
        [one.costs.cost("a", GroupConfig("core", ParallelConfig()))] for one in (stored, served)
    )
    assert narrow is not None
    assert wide is not None
    assert wide.kv_token_bytes[0] == 2 * narrow.kv_token_bytes[0]
    assert wide.weight_bytes[0] > 1.7 * narrow.weight_bytes[0]


@pytest.mark.parametrize(("quantization", "share"), [("int8", 0.5), ("int4", 0.25)])
def test_integer_weights_take_their_bits_in_layers_and_keys_and_values_do_not(
    quantization: str, share: float
):
    config = GroupConfig("core", ParallelConfig())
    costs = [
        looked_up(inputs_of(MODEL | {"quantization": each})).costs.cost("a", config)
        for each in ("none", quantization)
    ]
    [dense, narrow] = [cost for cost in costs if cost is not None]
    assert share * dense.weight_bytes[0] < narrow.weight_bytes[0] < 0.75 * dense.weight_bytes[0]
    assert narrow.kv_token_bytes == dense.kv_token_bytes


def test_config_json_gives_a_models_sizes(tmp_path: Path):
    config = {
        "model_type": "llama",
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 172,
        "num_hidden_layers": 5,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 512,
        "torch_dtype": "float32",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = {"id": "a", "config": "config.json", "rate_per_s": 1.0}

    situation = looked_up(inputs_of(model, folder=tmp_path))

    cost = situation.costs.cost("a", GroupConfig("core", ParallelConfig()))
    assert cost is not None
    # Layers, keys and values, heads, numbers of a head, and bytes of a number.
    assert cost.kv_token_bytes == (5 * 2 * 4 * 8 * 4,)
    assert situation.models[0].demands.max_model_len == 512


def plan_of(inputs: PlanInput, groups: Sequence[Group]) -> str:
    """The file of groups that are one device, or two stages of one."""
    configs = tuple(GroupConfig("core", ParallelConfig(stages)) for stages in (1, 2))
    placement = Placement(configs, inputs.model_ids, tuple(groups))
    objectives = [Objectives(ttft_s=1.23456)] * len(inputs.models)
    lengths = [1024] * len(inputs.models)
    return plan_yaml(inputs, placement, objectives, [2**30] * len(groups), lengths)


def test_plan_is_one_that_a_fabric_serves():
    inputs = inputs_of(
        MODEL | {"dtype": "bfloat16"},
        MODEL | {"id": "b", "quantization": "int8"},
        MODEL | {"id": "c"},
        serving={"num_threads": 2, "max_num_seqs": 8, "policy": "srw"},
    )

    text = plan_of(inputs, [Group(0, (0, 1)), Group(1, (0,))])

    config = parse_plan(SERVED, text, "plan.yaml")
    assert config.router.port == 1234
    # A model that is in no group is not served.
    assert [model.id for model in config.models] == ["a", "b"]
    assert [model.dtype for model in config.models] == ["bfloat16", "auto"]
    assert [model.quantization for model in config.models] == ["none", "int8"]
    assert config.models[0].source == "hf:org/a"
    assert config.models[0].objectives.ttft_s == 1.2346
    first, second = config.groups
    assert (first.name, first.model_ids) == ("g0", ("a", "b"))
    assert (second.name, second.parallel.pipeline) == ("g1", 2)
    assert (first.memory, first.num_threads, first.max_num_seqs) == (2**30, 2, 8)
    assert first.policy.name == "srw"


def test_types_like_a_processor_are_served_and_others_not_yet():
    devices = [{"type": name, "count": 1} for name in ("core", "cpu", "l4")]

    assert unserved_types(inputs_of(devices=devices)) == ("l4",)


def test_interval_of_seeds_is_students():
    found = interval([0.90, 0.92, 0.94])

    # 4.303 times the deviation of 0.02 over the square root of three.
    assert found.mean == pytest.approx(0.92)
    assert (found.low, found.high) == pytest.approx((0.92 - 0.0497, 0.92 + 0.0497), abs=1e-4)
    assert found.num_seeds == 3


def test_interval_stays_within_shares():
    assert interval([0.9, 1.0]).high == 1.0
    assert interval([0.0, 0.1]).low == 0.0


def test_one_seed_says_nothing_about_others():
    found = interval([0.7])

    assert (found.mean, found.low, found.high) == (0.7, 0.0, 1.0)


def test_percentiles_leave_out_what_never_came():
    found = percentiles(np.array([1.0, np.nan, 3.0]))

    assert (found.mean, found.p50) == (2.0, 2.0)
    assert np.isnan(percentiles(np.array([np.nan])).p99)
