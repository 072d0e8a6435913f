from pathlib import Path

import pytest

from fabric.config import load_config, parse_config
from fabric.core.errors import ConfigError
from fabric.core.request import Objectives
from fabric.engine.settings import EngineSettings, ModelSettings
from fabric.router.tenants import TenantLimits
from fabric.scheduler.policies import PolicyConfig
from fabric.scheduler.settings import FairnessConfig, ResidencyConfig

GOOD = {
    "models": [{"id": "a", "source": "/models/a"}],
    "groups": [{"name": "g0", "models": ["a"], "kv_cache": "1GiB"}],
}


def problem(tree: object) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(tree, "file")
    return caught.value.message


def test_a_small_file_is_enough() -> None:
    config = parse_config(GOOD, "file")
    assert config.engine_settings(config.groups[0]).worker.kv_cache_bytes == 2**30
    assert config.router.host == "127.0.0.1"


def test_a_models_weights_may_be_integers() -> None:
    models = [{"id": "a", "source": "/models/a", "quantization": "int4"}]
    config = parse_config({**GOOD, "models": models}, "file")
    [model] = config.engine_settings(config.groups[0]).worker.models
    assert model.quantization == "int4"
    models[0]["quantization"] = "int3"
    assert "models.0.quantization: Input should be 'none', 'int8' or" in problem(
        {**GOOD, "models": models}
    )


def test_an_unknown_key_is_refused_with_its_path() -> None:
    tree = {**GOOD, "groups": [{"name": "g0", "models": ["a"], "kv_cach": 1}]}
    assert "groups.0.kv_cach: Extra inputs are not permitted" in problem(tree)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("max_num_seqs", "many", "groups.0.max_num_seqs: Input should be a valid integer"),
        ("block_size", 7, "groups.0.block_size"),
        ("parallel", {"tensor": 0}, "groups.0.parallel.tensor"),
        ("models", ["b"], "'g0' hosts 'b', not one of ['a']"),
        ("kv_cache", "lots", "groups.0.kv_cache"),
        ("policy", {"name": "lifo"}, "groups.0.policy.name: Input should be 'fcfs', 'orca'"),
        ("swap", {"mode": "sometimes"}, "groups.0.swap.mode"),
        ("swap", {"timeout_s": 0}, "groups.0.swap.timeout_s"),
        ("device", "gpu", "groups.0.device: String should match pattern"),
    ],
)
def test_a_wrong_value_is_refused_with_its_path(key: str, value: object, words: str) -> None:
    group = {"name": "g0", "models": ["a"], key: value}
    assert words in problem({**GOOD, "groups": [group]})


def settings_of(group: dict[str, object]) -> EngineSettings:
    config = parse_config({**GOOD, "groups": [{"name": "g0", "models": ["a"], **group}]}, "file")
    return config.engine_settings(config.groups[0])


def test_a_group_is_told_who_runs_first_and_what_was_measured() -> None:
    settings = settings_of({"policy": {"name": "mlfq", "alpha_s": 3}, "profile": "~/a.json"})
    assert settings.scheduler.policy == PolicyConfig("mlfq", alpha_s=3.0)
    assert settings.worker.models[0].profile == Path.home() / "a.json"


def test_what_serves_parks_blocks_where_they_outlive_a_worker() -> None:
    settings = settings_of({"swap": {"host": "2MiB", "disk": "1GiB", "mode": "blocking"}})
    parking = settings.worker.parking
    assert (parking.host_bytes, parking.disk_bytes, parking.keep) == (2 * 2**20, 2**30, True)
    assert settings.scheduler.swap == "blocking"


SHARED = {
    "models": [{"id": name, "source": f"/models/{name}"} for name in "ab"],
    "groups": [{"name": "g0", "models": ["a", "b"]}],
}


def shared(group: dict[str, object]) -> dict[str, object]:
    return {**SHARED, "groups": [{"name": "g0", "models": ["a", "b"], **group}]}


def test_a_group_hosts_several_models_each_with_its_own_wishes() -> None:
    models = ["a", {"id": "b", "min_share": 0.25, "max_share": 0.5, "starts": "cold", "weight": 2}]
    group = {"models": models, "memory": "2GiB", "slab": "2MiB", "fairness": {"tenants": {"x": 3}}}
    config = parse_config(shared(group), "file")
    settings = config.engine_settings(config.groups[0])
    first, second = settings.worker.models
    assert first == ModelSettings(model="a", source="/models/a")
    assert (second.min_share, second.max_share, second.starts) == (0.25, 0.5, "cold")
    assert (settings.worker.memory_bytes, settings.worker.slab_bytes) == (2**31, 2**21)
    assert settings.scheduler.fairness == FairnessConfig(
        model_weights={"a": 1.0, "b": 2.0}, tenant_weights={"x": 3.0}
    )


def test_host_memory_keeps_weights_where_several_models_take_turns() -> None:
    assert settings_of({}).worker.host_weight_bytes == 0
    config = parse_config(SHARED, "file")
    settings = config.engine_settings(config.groups[0])
    assert settings.worker.host_weight_bytes == 4 * 2**30
    assert settings.scheduler.residency == ResidencyConfig(300.0, 4 * 2**30, 4.0)


def test_a_model_may_be_in_several_groups() -> None:
    groups = [{"name": name, "models": ["a"]} for name in ("g0", "g1")]
    assert len(parse_config({**GOOD, "groups": groups}, "file").groups) == 2


@pytest.mark.parametrize(
    ("group", "words"),
    [
        ({"models": ["a", "a"]}, "groups.0: Value error, models: 'a' is named twice"),
        ({"models": [{"id": "a", "min_share": 2}, "b"]}, "groups.0.models.0.min_share"),
        (
            {"models": [{"id": name, "min_share": 0.6} for name in "ab"]},
            "models: the min_share of all is 1.2; at most 1 is there",
        ),
        (
            {"models": [{"id": "a", "min_share": 0.5, "max_share": 0.4}, "b"]},
            "groups.0.models.0: Value error, min_share is 0.5, max_share 0.4",
        ),
        ({"models": ["a", {"id": "b", "weight": 0}]}, "groups.0.models.1.weight"),
        ({"profile": "a.json"}, "profile: is of one model; give each"),
        ({"weights": {"idle_s": 0}}, "groups.0.weights.idle_s"),
        ({"fairness": {"tenants": {"x": 0}}}, "groups.0.fairness.tenants.x"),
    ],
)
def test_a_wrong_wish_of_a_model_is_refused_with_its_path(
    group: dict[str, object], words: str
) -> None:
    assert words in problem(shared(group))


@pytest.mark.parametrize("off", ["off", False])
def test_swapping_can_be_off_as_a_word_or_as_yaml_reads_it(off: object) -> None:
    settings = settings_of({"swap": {"mode": off, "disk": "1GiB"}})
    assert (settings.worker.parking.host_bytes, settings.worker.parking.disk_bytes) == (0, 0)


def test_the_cache_folder_may_be_in_the_home_folder() -> None:
    assert parse_config({**GOOD, "cache_dir": "~/x"}, "file").cache_dir == Path.home() / "x"


def test_a_model_that_no_group_hosts_is_refused() -> None:
    models = [*GOOD["models"], {"id": "b", "source": "/models/b"}]
    assert "models: no group hosts 'b'" in problem({**GOOD, "models": models})


def test_a_file_that_is_not_a_mapping_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "fabric.yaml"
    path.write_text("- 1\n- 2\n")
    with pytest.raises(ConfigError, match="holds list; a mapping is needed"):
        load_config(path)


def test_broken_yaml_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "fabric.yaml"
    path.write_text("models: [")
    with pytest.raises(ConfigError, match="not YAML"):
        load_config(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: No such file"):
        load_config(tmp_path / "none.yaml")


def test_set_changes_one_value(tmp_path: Path) -> None:
    path = tmp_path / "fabric.yaml"
    path.write_text("models: [{id: a, source: x}]\ngroups: [{name: g, models: [a]}]\n")
    config = load_config(path, ("router.port=0", "groups.0.max_num_seqs=3"))
    assert (config.router.port, config.groups[0].max_num_seqs) == (0, 3)


@pytest.mark.parametrize(
    "override", ["router.port", "groups.7.name=x", "models.id=x", ".=1", "name=["]
)
def test_a_setting_that_has_no_place_is_refused(tmp_path: Path, override: str) -> None:
    path = tmp_path / "fabric.yaml"
    path.write_text("models: [{id: a, source: x}]\ngroups: [{name: g, models: [a]}]\n")
    with pytest.raises(ConfigError, match="--set"):
        load_config(path, (override,))


def test_a_router_is_told_of_objectives_tenants_and_how_to_route() -> None:
    models = [{**GOOD["models"][0], "objectives": {"ttft_s": 2, "refuse_if_late": True}}]
    router = {"routing": "round_robin", "tenants": {"gold": {"tokens_per_s": 5}}}
    settings = parse_config({**GOOD, "models": models, "router": router}, "file").router_settings(
        ""
    )
    assert settings.routing == "round_robin"
    assert settings.objectives == {"a": Objectives(ttft_s=2.0, refuse_if_late=True)}
    assert settings.tenants == {"gold": TenantLimits(tokens_per_s=5.0)}
    assert not settings.default_tenant.is_limited


def test_a_burst_without_a_rate_is_refused_with_its_path() -> None:
    tree = {**GOOD, "router": {"tenants": {"gold": {"burst_tokens": 5}}}}
    assert "router.tenants.gold: Value error, burst_tokens needs tokens_per_s" in problem(tree)


def test_a_group_may_be_on_a_gpu() -> None:
    group = {"name": "g0", "models": ["a"], "device": "cuda:1", "cuda_graphs": False}
    config = parse_config({**GOOD, "groups": [group]}, "file")
    worker = config.engine_settings(config.groups[0]).worker
    assert (worker.device, worker.cuda_graphs) == ("cuda:1", False)


def test_several_devices_of_a_group_cannot_be_gpus() -> None:
    group = {"name": "g0", "models": ["a"], "device": "cuda", "parallel": {"tensor": 2}}
    assert "device: cuda is one GPU" in problem({**GOOD, "groups": [group]})


@pytest.mark.parametrize(
    ("wishes", "is_on"),
    [
        ({}, False),
        ({"device": "cuda"}, True),
        ({"async_scheduling": True}, True),
        ({"device": "cuda", "async_scheduling": False}, False),
    ],
)
def test_iterations_are_scheduled_ahead_where_devices_are_no_processors_or_as_told(
    wishes: dict[str, object], is_on: bool
) -> None:
    config = parse_config({**GOOD, "groups": [{**GOOD["groups"][0], **wishes}]}, "file")  # type: ignore[dict-item]
    assert config.groups[0].scheduler_config().async_scheduling is is_on
