from pathlib import Path

import pytest

from fabric.config import load_config, parse_config
from fabric.core.errors import ConfigError
from fabric.engine.settings import EngineSettings
from fabric.scheduler.policies import PolicyConfig

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
    assert settings.profile == Path.home() / "a.json"


def test_what_serves_parks_blocks_where_they_outlive_a_worker() -> None:
    settings = settings_of({"swap": {"host": "2MiB", "disk": "1GiB", "mode": "blocking"}})
    parking = settings.worker.parking
    assert (parking.host_bytes, parking.disk_bytes, parking.keep) == (2 * 2**20, 2**30, True)
    assert settings.scheduler.swap == "blocking"


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
