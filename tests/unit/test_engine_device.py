"""Devices by name, and what is said where there is none of that name."""

from pathlib import Path

import pytest
import torch

from fabric.core.errors import ConfigError
from fabric.core.plan import ParallelConfig
from fabric.engine.device import describe_device, open_device
from fabric.engine.settings import ModelSettings, WorkerSettings
from fabric.engine.worker import Worker, WorkerPlace


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_is_found_by_its_number_and_the_first_without_one() -> None:
    assert open_device("cuda") == torch.device("cuda", 0)
    assert open_device("cuda:1") == torch.device("cuda", 1)
    assert describe_device(torch.device("cuda", 1)) == "NVIDIA H100"


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(ConfigError, match=r"'cuda:2'; torch sees cpu, cuda:0 \(NVIDIA H100\), cu"):
        open_device("cuda:2")


def test_a_machine_without_gpus_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match="torch sees cpu, and no GPU"):
        open_device("cuda")


def test_a_torch_without_cuda_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match="built without CUDA: there is cpu alone"):
        open_device("cuda")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "", "cpu:0"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="cpu, cuda or cuda:N is needed"):
        open_device(name)


@pytest.mark.usefixtures("two_gpus")
def test_a_group_of_several_gpus_is_refused(tmp_path: Path) -> None:
    model = ModelSettings(model="m", source=str(tmp_path))
    settings = WorkerSettings(models=(model,), cache_dir=tmp_path, device="cuda")
    with pytest.raises(ConfigError, match="the 2 devices of a group can only be cpu"):
        Worker(settings, place=WorkerPlace(ParallelConfig(tensor=2)))
